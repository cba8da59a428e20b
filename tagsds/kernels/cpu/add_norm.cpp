// LayerNorm(residual + dropout(x)) in one pass, forward and backward. H = width of a row.
//
// Sums of gradients over rows are taken in blocks of a fixed size and then in order: they do not depend on the number of threads.
#include "common.h"

namespace tagsds {

constexpr long kBlock = 128;  // rows whose gradients of weight and bias are summed by one task

struct Rows {
  long rows, width;
  const int64_t* residual_rows;  // row of the residual of each row, or null: its own
  float eps, p, keep;
  uint32_t seed, threshold;

  long residual_row(long i) const { return residual_rows ? residual_rows[i] : i; }
};

// the row's sum in float32 -> mean and 1 / deviation
template <bool Whole>
inline void statistics(const float* row, long width, float eps, float& mean, float& inverse) {
  Floats total{};
  for (long w = 0; w < width; w += kLanes) total += get<Whole>(row + w, width - w);
  mean = sum(total) / width;
  Floats square{};
  for (long w = 0; w < width; w += kLanes) {
    Floats d = get<Whole>(row + w, width - w, mean) - mean;
    square += d * d;
  }
  inverse = 1.0f / std::sqrt(sum(square) / width + eps);
}

template <bool Whole, class T>
inline void add_row(const Rows& r, const T* x, const T* residual, long i, float* row) {
  const T *a = x + i * r.width, *b = residual + r.residual_row(i) * r.width;
  const uint32_t bits = row_bits(r.seed, i);
  for (long w = 0; w < r.width; w += kLanes) {
    Floats added = get<Whole>(a + w, r.width - w);
    if (r.p > 0) added *= keep_scale(bits, w, r.threshold, r.keep);
    store(row + w, added + get<Whole>(b + w, r.width - w));
  }
}

// `mean` and `inverse` [rows] may be null
template <bool Whole, class T>
void add_norm(const Rows& r, const T* x, const T* residual, const float* weight, const float* bias, T* out, float* mean,
              float* inverse) {
#pragma omp parallel
  {
    std::vector<float> row(whole(r.width));
#pragma omp for schedule(static)
    for (long i = 0; i < r.rows; ++i) {
      float m, inv;
      add_row<Whole>(r, x, residual, i, row.data());
      statistics<Whole>(row.data(), r.width, r.eps, m, inv);
      for (long w = 0; w < r.width; w += kLanes) {
        const long n = r.width - w;
        set<Whole>(out + i * r.width + w,
                   (load(row.data() + w) - m) * inv * get<Whole>(weight + w, n) + get<Whole>(bias + w, n), n);
      }
      if (mean) mean[i] = m, inverse[i] = inv;
    }
  }
}

// d_x may be null where nothing was dropped: it is d_residual then. `sums` [blocks, 2, width] scratch.
template <bool Whole, class T>
void add_norm_backward(const Rows& r, const T* x, const T* residual, const float* weight, const float* mean, const float* inverse,
                       const T* d_out, T* d_x, T* d_residual, float* sums, float* d_weight, float* d_bias) {
  const long blocks = (r.rows + kBlock - 1) / kBlock;
#pragma omp parallel
  {
    std::vector<float> row(whole(r.width)), grad(whole(r.width)), added(2 * whole(r.width));
#pragma omp for schedule(static)
    for (long block = 0; block < blocks; ++block) {
      std::fill(added.begin(), added.end(), 0.0f);
      float *to_weight = added.data(), *to_bias = to_weight + whole(r.width);
      const long last = (block + 1) * kBlock < r.rows ? (block + 1) * kBlock : r.rows;
      for (long i = block * kBlock; i < last; ++i) {
        add_row<Whole>(r, x, residual, i, row.data());
        Floats plain{}, with_value{};
        for (long w = 0; w < r.width; w += kLanes) {
          const long n = r.width - w;
          Floats value = (get<Whole>(row.data() + w, n, mean[i]) - mean[i]) * inverse[i];
          Floats d = get<Whole>(d_out + i * r.width + w, n);
          store(to_weight + w, load(to_weight + w) + d * value);
          store(to_bias + w, load(to_bias + w) + d);
          d *= get<Whole>(weight + w, n);
          store(row.data() + w, value);
          store(grad.data() + w, d);
          plain += d;
          with_value += d * value;
        }
        const float a = sum(plain) / r.width, b = sum(with_value) / r.width;
        const uint32_t bits = row_bits(r.seed, i);
        for (long w = 0; w < r.width; w += kLanes) {
          const long n = r.width - w;
          Floats d = (load(grad.data() + w) - a - load(row.data() + w) * b) * inverse[i];
          set<Whole>(d_residual + i * r.width + w, d, n);
          if (d_x) set<Whole>(d_x + i * r.width + w, d * keep_scale(bits, w, r.threshold, r.keep), n);
        }
      }
      std::memcpy(sums + 2 * block * r.width, to_weight, r.width * sizeof(float));
      std::memcpy(sums + (2 * block + 1) * r.width, to_bias, r.width * sizeof(float));
    }
  }
  std::memset(d_weight, 0, r.width * sizeof(float));
  std::memset(d_bias, 0, r.width * sizeof(float));
  for (long block = 0; block < blocks; ++block)
    for (long w = 0; w < r.width; ++w) {
      d_weight[w] += sums[2 * block * r.width + w];
      d_bias[w] += sums[(2 * block + 1) * r.width + w];
    }
}

}  // namespace tagsds

using tagsds::BFloat16;
using tagsds::Rows;

namespace {

template <class T, class... More>
void forward(const Rows& rows, const void* x, const void* residual, const float* weight, const float* bias, void* out, More... more) {
  auto kernel = rows.width % tagsds::kLanes ? tagsds::add_norm<false, T> : tagsds::add_norm<true, T>;
  kernel(rows, (const T*)x, (const T*)residual, weight, bias, (T*)out, more...);
}

template <class T, class... More>
void backward(const Rows& rows, const void* x, const void* residual, const float* weight, const float* mean, const float* inverse,
              const void* d_out, void* d_x, void* d_residual, More... more) {
  auto kernel = rows.width % tagsds::kLanes ? tagsds::add_norm_backward<false, T> : tagsds::add_norm_backward<true, T>;
  kernel(rows, (const T*)x, (const T*)residual, weight, mean, inverse, (const T*)d_out, (T*)d_x, (T*)d_residual, more...);
}

}  // namespace

extern "C" {

void add_norm_forward(const Rows* rows, int bf16, const void* x, const void* residual, const float* weight, const float* bias,
                      void* out, float* mean, float* inverse) {
  (bf16 ? forward<BFloat16, float*, float*> : forward<float, float*, float*>)(*rows, x, residual, weight, bias, out, mean, inverse);
}

void add_norm_backward(const Rows* rows, int bf16, const void* x, const void* residual, const float* weight, const float* mean,
                       const float* inverse, const void* d_out, void* d_x, void* d_residual, float* sums, float* d_weight,
                       float* d_bias) {
  (bf16 ? backward<BFloat16, float*, float*, float*> : backward<float, float*, float*, float*>)(
      *rows, x, residual, weight, mean, inverse, d_out, d_x, d_residual, sums, d_weight, d_bias);
}
}
