// Attention over packed sequences, forward and backward, with dropout: no padded copy, probabilities never leave the cache.
//
// One task is one head of one sequence: its keys and values are brought to float32 once, then 32 queries at a time. What backward
// needs besides the inputs is the log of each row's sum (Dao et al. 2022, arXiv 2205.14135, section 3): probabilities are computed
// again. Tasks write to places of their own, so that results do not depend on the number of threads.
#include "common.h"

namespace tagsds {

constexpr long kQueries = 32;

struct Shape {
  long sequences, heads, width;           // of one head
  const int64_t *q_starts, *k_starts;     // [sequences + 1]
  long q_stride, k_stride, v_stride;      // elements from row to row; heads of a row lie side by side
  float scale, p, keep;                   // of the scores; dropout; 1 / (1 - p)
  uint32_t seed, threshold;
};

// The next head's part of each row, which lies behind this one's, is called into the cache meanwhile: rows are far apart.
template <class T>
void rows_to_floats(const T* from, long stride, long rows, long width, float factor, float* to, long ldt) {
  for (long i = 0; i < rows; ++i)
    for (long w = 0; w < width; w += kLanes) {
      __builtin_prefetch(from + i * stride + width + w, 0, 2);
      store(to + i * ldt + w, load_some(from + i * stride + w, width - w) * factor);
    }
}

struct Scratch {
  std::vector<float> memory;
  long at = 0;
  float* take(long count) {
    count = whole(count);
    float* out = memory.data() + at;
    at += count;
    return out;
  }
};

// scores [rows, L] -> exp(score - highest) and the row's sum; behind `keys` zero
inline void softmax_rows(float* scores, long rows, long keys, long L, float* highest, float* total) {
  for (long i = 0; i < rows; ++i) {
    float* row = scores + i * L;
    for (long j = keys; j < L; ++j) row[j] = -INFINITY;
    Floats top = load(row);
    for (long j = kLanes; j < L; j += kLanes) top = larger(top, load(row + j));
    float most = top[0];
    for (long j = 1; j < kLanes; ++j) most = top[j] > most ? top[j] : most;
    Floats added{};
    for (long j = 0; j < L; j += kLanes) {
      Floats e = exp(load(row + j) - most);
      store(row + j, e);
      added += e;
    }
    highest[i] = most;
    total[i] = sum(added);
  }
}

template <class T>
void forward(const Shape& s, const T* query, const T* key, const T* value, T* out, float* log_sums) {
  const long W = whole(s.width);
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, s.heads)
    for (long task = 0; task < s.sequences * s.heads; ++task) {
      const long sequence = task / s.heads, head = task % s.heads;
      const long q0 = s.q_starts[sequence], queries = s.q_starts[sequence + 1] - q0;
      const long k0 = s.k_starts[sequence], keys = s.k_starts[sequence + 1] - k0;
      if (queries == 0) continue;
      const long L = whole(keys);
      const long wanted = W * L + 2 * keys * W + kQueries * (2 * W + L) + 3 * kQueries + 16 * kLanes;
      if (long(scratch.memory.size()) < wanted) scratch.memory.resize(wanted);
      scratch.at = 0;
      float *kt = scratch.take(W * L), *k = scratch.take(keys * W), *v = scratch.take(keys * W);
      float *q = scratch.take(kQueries * W), *scores = scratch.take(kQueries * L), *o = scratch.take(kQueries * W);
      float *highest = scratch.take(kQueries), *total = scratch.take(kQueries);
      rows_to_floats(key + k0 * s.k_stride + head * s.width, s.k_stride, keys, s.width, 1.0f, k, W);
      rows_to_floats(value + k0 * s.v_stride + head * s.width, s.v_stride, keys, s.width, 1.0f, v, W);
      const bool few = queries < 4;  // turning the keys round would cost more than the product
      if (!few) transpose(keys, W, k, W, kt, L);
      for (long first = 0; first < queries; first += kQueries) {
        const long rows = queries - first < kQueries ? queries - first : kQueries;
        rows_to_floats(query + (q0 + first) * s.q_stride + head * s.width, s.q_stride, rows, s.width, s.scale, q, W);
        if (few)
          for (long i = 0; i < rows; ++i)
            for (long j = 0; j < keys; ++j) {
              Floats dot{};
              for (long w = 0; w < W; w += kLanes) dot += load(q + i * W + w) * load(k + j * W + w);
              scores[i * L + j] = sum(dot);
            }
        else
          product<false>(rows, L, W, q, W, 1, kt, L, scores, L);
        softmax_rows(scores, rows, keys, L, highest, total);
        for (long i = 0; i < rows; ++i) {
          const long number = (q0 + first + i) * s.heads + head;
          if (log_sums) log_sums[number] = highest[i] + std::log(total[i]);
          if (s.p > 0) {
            const uint32_t bits = row_bits(s.seed, number);
            for (long j = 0; j < L; j += kLanes)
              store(scores + i * L + j, load(scores + i * L + j) * keep_scale(bits, j, s.threshold, s.keep));
          }
        }
        product<false>(rows, W, keys, scores, L, 1, v, W, o, W);
        for (long i = 0; i < rows; ++i) {
          T* to = out + ((q0 + first + i) * s.heads + head) * s.width;
          const float share = 1.0f / total[i];
          for (long w = 0; w < s.width; w += kLanes) store_some(to + w, load(o + i * W + w) * share, s.width - w);
        }
      }
    }
  }
}

// Gradients go to d_query (rows and stride of `query`), d_key, d_value (of `key`, `value`); each element is written once.
template <class T>
void backward(const Shape& s, const T* query, const T* key, const T* value, const T* out, const float* log_sums,
              const T* d_out, T* d_query, T* d_key, T* d_value) {
  const long W = whole(s.width);
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, s.heads)
    for (long task = 0; task < s.sequences * s.heads; ++task) {
      const long sequence = task / s.heads, head = task % s.heads;
      const long q0 = s.q_starts[sequence], queries = s.q_starts[sequence + 1] - q0;
      const long k0 = s.k_starts[sequence], keys = s.k_starts[sequence + 1] - k0;
      if (keys == 0) continue;
      const long L = whole(keys);
      const long wanted = 2 * W * L + 4 * keys * W + kQueries * (3 * W + 2 * L) + 16 * kLanes;
      if (long(scratch.memory.size()) < wanted) scratch.memory.resize(wanted);
      scratch.at = 0;
      float *kt = scratch.take(W * L), *vt = scratch.take(W * L), *k = scratch.take(keys * W), *v = scratch.take(keys * W);
      float *dk = scratch.take(keys * W), *dv = scratch.take(keys * W);
      float *q = scratch.take(kQueries * W), *d_o = scratch.take(kQueries * W), *dq = scratch.take(kQueries * W);
      float *scores = scratch.take(kQueries * L), *d_scores = scratch.take(kQueries * L);
      rows_to_floats(key + k0 * s.k_stride + head * s.width, s.k_stride, keys, s.width, 1.0f, k, W);
      rows_to_floats(value + k0 * s.v_stride + head * s.width, s.v_stride, keys, s.width, 1.0f, v, W);
      transpose(keys, W, k, W, kt, L);
      transpose(keys, W, v, W, vt, L);
      std::memset(dk, 0, keys * W * sizeof(float));
      std::memset(dv, 0, keys * W * sizeof(float));
      for (long first = 0; first < queries; first += kQueries) {
        const long rows = queries - first < kQueries ? queries - first : kQueries;
        rows_to_floats(query + (q0 + first) * s.q_stride + head * s.width, s.q_stride, rows, s.width, s.scale, q, W);
        const T* from = d_out + ((q0 + first) * s.heads + head) * s.width;
        rows_to_floats(from, s.heads * s.width, rows, s.width, 1.0f, d_o, W);
        product<false>(rows, L, W, q, W, 1, kt, L, scores, L);
        product<false>(rows, L, W, d_o, W, 1, vt, L, d_scores, L);
        for (long i = 0; i < rows; ++i) {
          const long number = (q0 + first + i) * s.heads + head;
          const T* o = out + number * s.width;
          Floats dot{};
          for (long w = 0; w < s.width; w += kLanes) dot += load_some(o + w, s.width - w) * load(d_o + i * W + w);
          const float delta = sum(dot), log_sum = log_sums[number];
          const uint32_t bits = row_bits(s.seed, number);
          for (long j = 0; j < L; j += kLanes) {
            Floats p = exp(load(scores + i * L + j) - log_sum), dp = load(d_scores + i * L + j);
            Floats kept = s.p > 0 ? keep_scale(bits, j, s.threshold, s.keep) : splat(1.0f);
            store(scores + i * L + j, p * kept);
            store(d_scores + i * L + j, p * (dp * kept - delta));
          }
          for (long j = keys; j < L; ++j) scores[i * L + j] = d_scores[i * L + j] = 0.0f;
        }
        product<false>(rows, W, keys, d_scores, L, 1, k, W, dq, W);
        product<true>(keys, W, rows, d_scores, 1, L, q, W, dk, W);  // q holds the scale
        product<true>(keys, W, rows, scores, 1, L, d_o, W, dv, W);
        for (long i = 0; i < rows; ++i) {
          T* to = d_query + (q0 + first + i) * s.q_stride + head * s.width;
          for (long w = 0; w < s.width; w += kLanes) store_some(to + w, load(dq + i * W + w) * s.scale, s.width - w);
        }
      }
      for (long j = 0; j < keys; ++j) {
        T* to_k = d_key + (k0 + j) * s.k_stride + head * s.width;
        T* to_v = d_value + (k0 + j) * s.v_stride + head * s.width;
        for (long w = 0; w < s.width; w += kLanes) {
          store_some(to_k + w, load(dk + j * W + w), s.width - w);
          store_some(to_v + w, load(dv + j * W + w), s.width - w);
        }
      }
    }
  }
}

}  // namespace tagsds

using tagsds::BFloat16;
using tagsds::Shape;

extern "C" {

void attention_forward(const Shape* shape, int bf16, const void* q, const void* k, const void* v, void* out, float* log_sums) {
  if (bf16)
    tagsds::forward(*shape, (const BFloat16*)q, (const BFloat16*)k, (const BFloat16*)v, (BFloat16*)out, log_sums);
  else
    tagsds::forward(*shape, (const float*)q, (const float*)k, (const float*)v, (float*)out, log_sums);
}

void attention_backward(const Shape* shape, int bf16, const void* q, const void* k, const void* v, const void* out,
                        const float* log_sums, const void* d_out, void* dq, void* dk, void* dv) {
  if (bf16)
    tagsds::backward(*shape, (const BFloat16*)q, (const BFloat16*)k, (const BFloat16*)v, (const BFloat16*)out, log_sums,
                     (const BFloat16*)d_out, (BFloat16*)dq, (BFloat16*)dk, (BFloat16*)dv);
  else
    tagsds::backward(*shape, (const float*)q, (const float*)k, (const float*)v, (const float*)out, log_sums,
                     (const float*)d_out, (float*)dq, (float*)dk, (float*)dv);
}
}
