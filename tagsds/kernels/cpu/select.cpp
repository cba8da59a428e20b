// The k highest scores of every row (or column) of a matrix that comes in blocks. See tagsds/kernels/select.py, which holds the
// same in torch.
//
// A row keeps up to `room` > k scores without order, and a bar: the k-th highest score when it was last cut back. A block costs one
// compare a score; what lies above the bar is appended, and a full row is cut back to its k highest by a partial sort. Random order
// appends about k (1 + ln(N / k)) of a row's N scores.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t STRIP = 256;  // columns of a block that one thread goes down at a time: a row of a strip is 1 KiB

// One number whose order is that of the score, and among equal scores the lower index first.
inline uint64_t key_of(float score, int32_t number) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  bits = (bits >> 31) ? ~bits : bits | 0x80000000u;
  return (uint64_t(bits) << 32) | (0xffffffffu - uint32_t(number));
}

inline float score_of(uint64_t key) {
  uint32_t bits = uint32_t(key >> 32);
  bits = (bits >> 31) ? bits & 0x7fffffffu : ~bits;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

inline int32_t number_of(uint64_t key) { return int32_t(0xffffffffu - uint32_t(key)); }

// The k highest of `keys`, which differ from each other, put first, without order. Quickselect whose partition has no branch, with a
// pivot from a sorted sample near the wanted rank: about two passes, where std::nth_element waits for mispredicted branches.
void highest_first(std::vector<uint64_t>& keys, int64_t k) {
  constexpr int64_t SAMPLE = 16;
  thread_local std::vector<uint64_t> low;
  low.resize(keys.size());
  int64_t begin = 0, end = int64_t(keys.size());
  while (end - begin > 4 * SAMPLE) {
    uint64_t sample[SAMPLE];
    const int64_t step = (end - begin) / SAMPLE;
    for (int64_t i = 0; i < SAMPLE; ++i) sample[i] = keys[size_t(begin + i * step)];
    std::sort(sample, sample + SAMPLE, std::greater<uint64_t>());
    const uint64_t pivot = sample[(k - begin) * SAMPLE / (end - begin)];
    int64_t high = begin, rest = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t key = keys[size_t(i)];
      const bool above = key > pivot;
      keys[size_t(high)] = key;
      low[size_t(rest)] = key;
      high += above;
      rest += !above;
    }
    std::memcpy(keys.data() + high, low.data(), size_t(rest) * sizeof(uint64_t));
    if (high >= k) {
      end = high;
    } else {  // the pivot itself is the highest of the rest: put it first, so that each turn makes progress
      std::swap(keys[size_t(high)], *std::find(keys.begin() + high, keys.begin() + end, pivot));
      begin = high + 1;
    }
    if (begin >= k || end <= k) return;
  }
  std::nth_element(keys.begin() + begin, keys.begin() + (k - 1), keys.begin() + end, std::greater<uint64_t>());
}

struct Tops {
  float* scores;     // [n, room]
  int32_t* numbers;  // [n, room]
  int32_t* filled;   // [n]
  float* bar;        // [n]
  int64_t k, room;

  // Row r cut back to its k highest, in order if `sorted`.
  void cut(int64_t r, bool sorted) const {
    thread_local std::vector<uint64_t> keys;
    float* s = scores + r * room;
    int32_t* n = numbers + r * room;
    int64_t count = filled[r];
    keys.resize(size_t(count));
    for (int64_t i = 0; i < count; ++i) keys[size_t(i)] = key_of(s[i], n[i]);
    if (count > k) {
      highest_first(keys, k);
      count = k;
    }
    if (count == k) bar[r] = std::max(bar[r], score_of(*std::min_element(keys.begin(), keys.begin() + k)));
    if (sorted) std::sort(keys.begin(), keys.begin() + count, std::greater<uint64_t>());
    for (int64_t i = 0; i < count; ++i) {
      s[i] = score_of(keys[size_t(i)]);
      n[i] = number_of(keys[size_t(i)]);
    }
    filled[r] = int32_t(count);
  }

  inline void push(int64_t r, float score, int32_t number) const {
    if (filled[r] == room) {
      cut(r, false);
      if (!(score > bar[r])) return;
    }
    const int64_t at = r * room + filled[r]++;
    scores[at] = score;
    numbers[at] = number;
  }
};

// Lanes 0 to 15 whose score lies above its bar and whose owner is another.
#if defined(__AVX512F__)
inline uint32_t above(const float* s, __m512 bars, const int32_t* owners, int32_t mine) {
  const __mmask16 other = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(owners), _mm512_set1_epi32(mine));
  return _mm512_mask_cmp_ps_mask(other, _mm512_loadu_ps(s), bars, _CMP_GT_OQ);
}
#endif

void rows_of(const float* block, int64_t begin, int64_t end, int64_t columns, const Tops& tops, int32_t first,
             const int32_t* row_owners, const int32_t* column_owners) {
  for (int64_t r = begin; r < end; ++r) {
    const float* s = block + r * columns;
    const int32_t mine = row_owners[r];
    int64_t c = 0;
#if defined(__AVX512F__)
    float* kept = tops.scores + r * tops.room;
    int32_t* numbers = tops.numbers + r * tops.room;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t count = tops.filled[r];
    __m512 bars = _mm512_set1_ps(tops.bar[r]);
    for (; c + LANES <= columns; c += LANES) {
      const __mmask16 hit = __mmask16(above(s + c, bars, column_owners + c, mine));
      if (!hit) continue;
      if (count + LANES > tops.room) {
        tops.filled[r] = int32_t(count);
        tops.cut(r, false);
        count = tops.filled[r];
        bars = _mm512_set1_ps(tops.bar[r]);
      }
      // All lanes are written (a masked store with compression is slow on some processors), the next hit overwrites the rest.
      const __m512i number = _mm512_add_epi32(lanes, _mm512_set1_epi32(first + int32_t(c)));
      _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(hit, _mm512_loadu_ps(s + c)));
      _mm512_storeu_si512(numbers + count, _mm512_maskz_compress_epi32(hit, number));
      count += __builtin_popcount(hit);
    }
    tops.filled[r] = int32_t(count);
#endif
    for (; c < columns; ++c)
      if (s[c] > tops.bar[r] && column_owners[c] != mine) tops.push(r, s[c], first + int32_t(c));
  }
}

void columns_of(const float* block, int64_t rows, int64_t begin, int64_t end, int64_t columns, const Tops& tops, int32_t first,
                const int32_t* row_owners, const int32_t* column_owners) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* s = block + r * columns;
    const int32_t mine = row_owners[r];
    int64_t c = begin;
#if defined(__AVX512F__)
    for (; c + LANES <= end; c += LANES) {
      uint32_t hits = above(s + c, _mm512_loadu_ps(tops.bar + c), column_owners + c, mine);
      for (; hits; hits &= hits - 1) {
        const int64_t at = c + __builtin_ctz(hits);
        tops.push(at, s[at], first + int32_t(r));
      }
    }
#endif
    for (; c < end; ++c)
      if (s[c] > tops.bar[c] && column_owners[c] != mine) tops.push(c, s[c], first + int32_t(r));
  }
}

}  // namespace

extern "C" {

// block [rows, columns]; tops of each row, or `by_column` of each column; room >= k + 16
void select_offer(const Tops* tops, const float* block, int64_t rows, int64_t columns, int32_t first, const int32_t* row_owners,
                  const int32_t* column_owners, int by_column) {
  if (!by_column) {
#pragma omp parallel for schedule(dynamic, 8)
    for (int64_t r = 0; r < rows; ++r) rows_of(block, r, r + 1, columns, *tops, first, row_owners, column_owners);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t strip = 0; strip < (columns + STRIP - 1) / STRIP; ++strip)
    columns_of(block, rows, strip * STRIP, std::min(columns, (strip + 1) * STRIP), columns, *tops, first, row_owners, column_owners);
}

// each of n rows cut to its k highest, in order; -inf and -1 behind them
void select_settle(const Tops* tops, int64_t n) {
#pragma omp parallel for schedule(dynamic, 64)
  for (int64_t r = 0; r < n; ++r) {
    tops->cut(r, true);
    for (int64_t i = tops->filled[r]; i < tops->room; ++i) {
      tops->scores[r * tops->room + i] = -std::numeric_limits<float>::infinity();
      tops->numbers[r * tops->room + i] = -1;
    }
  }
}
}
