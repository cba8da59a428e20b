// Attention over packed sequences, forward and backward, with dropout: no padded copy, probabilities never leave the cache.
//
// One task is one head of one sequence: its keys and values are brought to the form of the products once, then 24 queries at a time.
// bfloat16 is multiplied by dot products of two where the processor has them, else as float32; the softmax is float32 always. What
// backward needs besides the inputs is the log of each row's sum (Dao et al. 2022, arXiv 2205.14135, section 3): probabilities are
// computed again. Tasks write to places of their own, so that results do not depend on the number of threads.
#include "product.h"

namespace tagsds {

constexpr long kQueries = 24;  // four times the rows of a tile
constexpr long kFew = 4;       // below so many queries, bringing keys and values to another form would cost more than the products

struct Shape {
  long sequences, heads, width;           // of one head
  const int64_t *q_starts, *k_starts;     // [sequences + 1]
  long q_stride, k_stride, v_stride;      // elements from row to row; heads of a row lie side by side
  float scale, p, keep;                   // of the scores; dropout; 1 / (1 - p)
  uint32_t seed, threshold;
};

// One head of one sequence.
struct Task {
  long sequence, head, q0, queries, k0, keys;
  long L, W;  // keys and width of the head in whole vectors

  Task(const Shape& s, long number) : sequence(number / s.heads), head(number % s.heads), W(whole(s.width)) {
    q0 = s.q_starts[sequence], queries = s.q_starts[sequence + 1] - q0;
    k0 = s.k_starts[sequence], keys = s.k_starts[sequence + 1] - k0;
    L = whole(keys);
  }

  // where the head's part of row `row` begins
  template <class T>
  T* at(const Shape& s, T* rows, long row, long stride) const {
    return rows + row * stride + head * s.width;
  }
};

// Memory of a thread, in whole vectors; it only grows.
class Scratch {
  struct alignas(sizeof(Floats)) Line {
    float lanes[kLanes];
  };
  std::vector<Line> memory;
  size_t used = 0;

 public:
  // `parts` takes all that a task needs; it is called again where the memory had to grow
  template <class Parts>
  void lay(Parts parts) {
    used = 0;
    parts();
    if (used <= memory.size()) return;
    memory.resize(used);
    used = 0;
    parts();
  }

  template <class E>
  void take(E*& part, long count) {
    static_assert(sizeof(E) == sizeof(float), "parts are counted in 32 bits");
    part = (E*)(memory.data() + used);
    used += whole(count) / kLanes;
  }
};

// scores [rows, L], unscaled, of the queries numbered `number`, `number` + step, ... -> exp(scale * score - highest) with dropout, zero
// behind `keys`; totals [rows] without dropout; log_sums of each number where asked for
template <class E>
inline void softmax(const Shape& s, long rows, const float* scores, long keys, long L, long number, long step, E* to, float* totals,
                    float* log_sums) {
  const long last = L - kLanes;
  float most[kQueries];
  for (long i = 0; i < rows; ++i) {
    const float* row = scores + i * L;
    Floats top = first(load(row + last), keys - last, -INFINITY);
    for (long j = 0; j < last; j += kLanes) top = larger(top, load(row + j));
    most[i] = highest(top) * s.scale;
  }
  for (long i = 0; i < rows; ++i) {
    const float* row = scores + i * L;
    const uint32_t bits = row_bits(s.seed, number + i * step);
    E* out = to + i * L / Operands<E>::kOf;
    Floats added{};
    for (long j = 0; j < L; j += kLanes) {
      Floats e = exp(load(row + j) * s.scale - most[i]);
      if (j == last) e = first(e, keys - last, 0.0f);
      added += e;
      if (s.p > 0) e *= keep_scale(bits, j, s.threshold, s.keep);
      Operands<E>::put(out, j, e);
    }
    totals[i] = sum(added);
  }
  if (log_sums)
    for (long i = 0; i < rows; ++i) log_sums[number + i * step] = most[i] + std::log(totals[i]);
}

// A few queries: keys and values are read where they lie. The next head's part of each row, which lies behind this one's, is called
// into the cache meanwhile: rows are far apart.
template <class T>
void attend_few(const Shape& s, const Task& t, Scratch& scratch, const T* query, const T* key, const T* value, T* out,
                float* log_sums) {
  float *q, *scores;
  scratch.lay([&] { scratch.take(q, t.W), scratch.take(scores, t.L); });
  const T *k = t.at(s, key, t.k0, s.k_stride), *v = t.at(s, value, t.k0, s.v_stride);
  for (long i = t.q0; i < t.q0 + t.queries; ++i) {
    long ld;
    Operands<float>::left(t.at(s, query, i, s.q_stride), 0, 1, s.width, q, ld);
    for (long j = 0; j < t.keys; ++j) {
      Floats dot{};
      for (long w = 0; w < s.width; w += kLanes) {
        __builtin_prefetch(k + j * s.k_stride + s.width + w, 0, 2);
        __builtin_prefetch(v + j * s.v_stride + s.width + w, 0, 2);
        dot += load(q + w) * load_some(k + j * s.k_stride + w, s.width - w);
      }
      scores[j] = sum(dot);
    }
    float total = 1.0f;
    if (t.keys) softmax(s, 1, scores, t.keys, t.L, i * s.heads + t.head, s.heads, scores, &total, log_sums);
    T* to = t.at(s, out, i, s.heads * s.width);
    for (long w = 0; w < s.width; w += kLanes) {
      Floats added{};
      for (long j = 0; j < t.keys; ++j) added += scores[j] * load_some(v + j * s.v_stride + w, s.width - w);
      store_some(to + w, added / total, s.width - w);
    }
  }
}

// All queries of a task in blocks.
template <class T, class E>
void attend(const Shape& s, const Task& t, Scratch& scratch, const T* query, const T* key, const T* value, T* out,
            float* log_sums) {
  using Of = Operands<E>;
  const long W = t.W, L = t.L, depth = (s.width + Of::kOf - 1) / Of::kOf, key_depth = (t.keys + Of::kOf - 1) / Of::kOf;
  E *kt, *k_copy, *v_copy, *q_copy, *shares;
  float *scores, *o, *totals;
  scratch.lay([&] {
    scratch.take(kt, whole(depth) * L), scratch.take(k_copy, t.keys * W), scratch.take(v_copy, t.keys * W);
    scratch.take(q_copy, kQueries * W), scratch.take(scores, kQueries * L), scratch.take(shares, kQueries * L);
    scratch.take(o, kQueries * W), scratch.take(totals, kQueries);
  });
  const T *k_rows = t.at(s, key, t.k0, s.k_stride), *v_rows = t.at(s, value, t.k0, s.v_stride);
  long ld;
  const E* k = Of::left(k_rows, s.k_stride, t.keys, s.width, k_copy, ld);
  Of::turned(k, k_rows, s.k_stride, t.keys, s.width, kt, L);
  const E* v = Of::left(v_rows, s.v_stride, t.keys, s.width, v_copy, ld);
  v = Of::right(v, v_rows, s.v_stride, t.keys, s.width, v_copy);
  for (long begin = 0; begin < t.queries; begin += kQueries) {
    const long rows = std::min(kQueries, t.queries - begin), row = t.q0 + begin;
    const E* q = Of::left(t.at(s, query, row, s.q_stride), s.q_stride, rows, s.width, q_copy, ld);
    product<false>(rows, L, depth, q, ld, 1, kt, L, scores, L);
    softmax(s, rows, scores, t.keys, L, row * s.heads + t.head, s.heads, shares, totals, log_sums);
    product<false>(rows, W, key_depth, shares, L / Of::kOf, 1, v, W, o, W);
    for (long i = 0; i < rows; ++i) {
      T* to = t.at(s, out, row + i, s.heads * s.width);
      const float share = 1.0f / totals[i];
      for (long w = 0; w < s.width; w += kLanes) store_some(to + w, load(o + i * W + w) * share, s.width - w);
    }
  }
}

template <class T, class E>
void forward(const Shape& s, const T* query, const T* key, const T* value, T* out, float* log_sums) {
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, s.heads)
    for (long number = 0; number < s.sequences * s.heads; ++number) {
      const Task task(s, number);
      if (task.queries < kFew || task.keys == 0)
        attend_few(s, task, scratch, query, key, value, out, log_sums);
      else
        attend<T, E>(s, task, scratch, query, key, value, out, log_sums);
    }
  }
}

// Gradients go to d_query (rows and stride of `query`), d_key, d_value (of `key`, `value`); each element is written once.
template <class T, class E>
void backward(const Shape& s, const T* query, const T* key, const T* value, const T* out, const float* log_sums,
              const T* d_out, T* d_query, T* d_key, T* d_value) {
  using Of = Operands<E>;
  const long depth = (s.width + Of::kOf - 1) / Of::kOf, out_stride = s.heads * s.width;
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, s.heads)
    for (long number = 0; number < s.sequences * s.heads; ++number) {
      const Task t(s, number);
      if (t.keys == 0) continue;
      const long W = t.W, L = t.L, key_depth = (t.keys + Of::kOf - 1) / Of::kOf;
      E *kt, *vt, *k_copy, *v_copy, *q_copy, *d_o_copy, *q_copy2, *d_o_copy2, *shares, *d_scores, *shares2, *d_scores2;
      float *dk, *dv, *dq, *scores, *d_shares;
      scratch.lay([&] {
        scratch.take(kt, whole(depth) * L), scratch.take(vt, whole(depth) * L);
        for (E** part : {&k_copy, &v_copy}) scratch.take(*part, t.keys * W);
        for (float** part : {&dk, &dv}) scratch.take(*part, t.keys * W);
        for (E** part : {&q_copy, &d_o_copy, &q_copy2, &d_o_copy2}) scratch.take(*part, kQueries * W);
        for (E** part : {&shares, &d_scores, &shares2, &d_scores2}) scratch.take(*part, kQueries * L);
        for (float** part : {&scores, &d_shares}) scratch.take(*part, kQueries * L);
        scratch.take(dq, kQueries * W);
      });
      const T *k_rows = t.at(s, key, t.k0, s.k_stride), *v_rows = t.at(s, value, t.k0, s.v_stride);
      long ld, ld_o;
      const E* k = Of::left(k_rows, s.k_stride, t.keys, s.width, k_copy, ld);
      const E* v = Of::left(v_rows, s.v_stride, t.keys, s.width, v_copy, ld);
      Of::turned(k, k_rows, s.k_stride, t.keys, s.width, kt, L);
      Of::turned(v, v_rows, s.v_stride, t.keys, s.width, vt, L);
      k = Of::right(k, k_rows, s.k_stride, t.keys, s.width, k_copy);
      std::memset(dk, 0, t.keys * W * sizeof(float));
      std::memset(dv, 0, t.keys * W * sizeof(float));
      for (long begin = 0; begin < t.queries; begin += kQueries) {
        const long rows = std::min(kQueries, t.queries - begin), row = t.q0 + begin, depth_of_rows = (rows + Of::kOf - 1) / Of::kOf;
        const T *q_rows = t.at(s, query, row, s.q_stride), *d_o_rows = t.at(s, d_out, row, out_stride);
        const E* q = Of::left(q_rows, s.q_stride, rows, s.width, q_copy, ld);
        const E* d_o = Of::left(d_o_rows, out_stride, rows, s.width, d_o_copy, ld_o);
        product<false>(rows, L, depth, q, ld, 1, kt, L, scores, L);
        product<false>(rows, L, depth, d_o, ld_o, 1, vt, L, d_shares, L);
        for (long i = 0; i < rows; ++i) {
          const long place = (row + i) * s.heads + t.head;
          const T *o = out + place * s.width, *d = d_o_rows + i * out_stride;
          Floats dot{};
          for (long w = 0; w < s.width; w += kLanes) dot += load_some(o + w, s.width - w) * load_some(d + w, s.width - w);
          const float delta = sum(dot), log_sum = log_sums[place];
          const uint32_t bits = row_bits(s.seed, place);
          for (long j = 0; j < L; j += kLanes) {
            Floats p = exp(load(scores + i * L + j) * s.scale - log_sum), dp = load(d_shares + i * L + j);
            if (t.keys - j < kLanes) p = first(p, t.keys - j, 0.0f);
            Floats kept = s.p > 0 ? keep_scale(bits, j, s.threshold, s.keep) : splat(1.0f);
            Of::put(shares + i * L / Of::kOf, j, p * kept);
            Of::put(d_scores + i * L / Of::kOf, j, p * (dp * kept - delta));
          }
        }
        product<false>(rows, W, key_depth, d_scores, L / Of::kOf, 1, k, W, dq, W);
        const E* d_scores_by_row = Of::right(d_scores, (const T*)d_scores, L, rows, L, d_scores2);
        const E* shares_by_row = Of::right(shares, (const T*)shares, L, rows, L, shares2);
        const E* q_by_row = Of::right(q, q_rows, s.q_stride, rows, s.width, q_copy2);
        const E* d_o_by_row = Of::right(d_o, d_o_rows, out_stride, rows, s.width, d_o_copy2);
        product<true>(t.keys, W, depth_of_rows, d_scores_by_row, 1, L, q_by_row, W, dk, W);
        product<true>(t.keys, W, depth_of_rows, shares_by_row, 1, L, d_o_by_row, W, dv, W);
        for (long i = 0; i < rows; ++i) {
          T* to = t.at(s, d_query, row + i, s.q_stride);
          for (long w = 0; w < s.width; w += kLanes) store_some(to + w, load(dq + i * W + w) * s.scale, s.width - w);
        }
      }
      for (long j = 0; j < t.keys; ++j) {
        T *to_k = t.at(s, d_key, t.k0 + j, s.k_stride), *to_v = t.at(s, d_value, t.k0 + j, s.v_stride);
        for (long w = 0; w < s.width; w += kLanes) {
          store_some(to_k + w, load(dk + j * W + w) * s.scale, s.width - w);
          store_some(to_v + w, load(dv + j * W + w), s.width - w);
        }
      }
    }
  }
}

}  // namespace tagsds

using tagsds::BFloat16;
using tagsds::Pair;
using tagsds::Shape;

namespace {

// Pairs lie side by side in rows of even length alone.
bool in_pairs(const Shape& s) { return tagsds::kHasPairs && s.width % 2 == 0; }

}  // namespace

extern "C" {

void attention_forward(const Shape* shape, int bf16, const void* q, const void* k, const void* v, void* out, float* log_sums) {
  if (bf16)
    (in_pairs(*shape) ? tagsds::forward<BFloat16, Pair> : tagsds::forward<BFloat16, float>)(
        *shape, (const BFloat16*)q, (const BFloat16*)k, (const BFloat16*)v, (BFloat16*)out, log_sums);
  else
    tagsds::forward<float, float>(*shape, (const float*)q, (const float*)k, (const float*)v, (float*)out, log_sums);
}

void attention_backward(const Shape* shape, int bf16, const void* q, const void* k, const void* v, const void* out,
                        const float* log_sums, const void* d_out, void* dq, void* dk, void* dv) {
  if (bf16)
    (in_pairs(*shape) ? tagsds::backward<BFloat16, Pair> : tagsds::backward<BFloat16, float>)(
        *shape, (const BFloat16*)q, (const BFloat16*)k, (const BFloat16*)v, (const BFloat16*)out, log_sums,
        (const BFloat16*)d_out, (BFloat16*)dq, (BFloat16*)dk, (BFloat16*)dv);
  else
    tagsds::backward<float, float>(*shape, (const float*)q, (const float*)k, (const float*)v, (const float*)out, log_sums,
                                   (const float*)d_out, (float*)dq, (float*)dk, (float*)dv);
}
}
