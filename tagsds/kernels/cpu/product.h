// C (+)= A B for matrices that fit in the cache, in float32 or by dot products of two bfloat16, and what brings operands to their
// form. Sums are float32.
#pragma once
#include "common.h"

namespace tagsds {

// two neighbours along the sum, the first in the lower half: one operand of VDPBF16PS
struct __attribute__((may_alias)) Pair {
  uint32_t bits;
};

#ifdef TAGSDS_PAIRS
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

inline Floats splat(Pair x) { return (Floats)(Words{} + x.bits); }

inline Floats load(const Pair* from) { return load((const float*)from); }

inline Floats add_product(Floats sum, float a, Floats b) { return sum + a * b; }

inline Floats add_product(Floats sum, Pair a, Floats b) {
#ifdef TAGSDS_PAIRS
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)splat(a), (__m512bh)b);
#else
  __builtin_unreachable();
#endif
}

// --- E is float, or Pair with half as many elements along the sum; K counts elements ---
// A [M, K] with any strides, B [K, N] and C [M, N] by rows, N in whole vectors

template <int Rows, int Columns, bool Add, class E>
inline void tile(long K, const E* a, long am, long ak, const E* b, long ldb, float* c, long ldc) {
  // unrolled, so that the sums stay in registers from beginning to end
  Floats acc[Rows][Columns];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) acc[i][j] = Add ? load(c + i * ldc + j * kLanes) : Floats{};
  for (long k = 0; k < K; ++k) {
    Floats row[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) row[j] = load(b + k * ldb + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) acc[i][j] = add_product(acc[i][j], a[i * am + k * ak], row[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) store(c + i * ldc + j * kLanes, acc[i][j]);
}

// Columns of a tile in vectors. Its sums, a row of B and one number of A are to fit in the registers: 32, or 16 of AVX2.
constexpr int kColumns = kLanes == 8 ? 2 : 4;

template <int Columns, bool Add, class E>
inline void panel(long M, long K, const E* a, long am, long ak, const E* b, long ldb, float* c, long ldc) {
  constexpr int kRows = Columns > kColumns / 2 ? 6 : 8;
  long i = 0;
  for (; i + kRows <= M; i += kRows) tile<kRows, Columns, Add>(K, a + i * am, am, ak, b, ldb, c + i * ldc, ldc);
  for (; i + 4 <= M; i += 4) tile<4, Columns, Add>(K, a + i * am, am, ak, b, ldb, c + i * ldc, ldc);
  for (; i + 2 <= M; i += 2) tile<2, Columns, Add>(K, a + i * am, am, ak, b, ldb, c + i * ldc, ldc);
  for (; i < M; ++i) tile<1, Columns, Add>(K, a + i * am, am, ak, b, ldb, c + i * ldc, ldc);
}

template <bool Add, class E>
inline void product(long M, long N, long K, const E* a, long am, long ak, const E* b, long ldb, float* c, long ldc) {
  long n = 0;
  for (; n + kColumns * kLanes <= N; n += kColumns * kLanes) panel<kColumns, Add>(M, K, a, am, ak, b + n, ldb, c + n, ldc);
  switch ((N - n) / kLanes) {  // fewer than kColumns
    case 3: panel<3, Add>(M, K, a, am, ak, b + n, ldb, c + n, ldc); break;
    case 2: panel<2, Add>(M, K, a, am, ak, b + n, ldb, c + n, ldc); break;
    case 1: panel<1, Add>(M, K, a, am, ak, b + n, ldb, c + n, ldc); break;
  }
}

// the lanes of two vectors in turn: the lower halves, and the upper ones
inline void interleave(Floats a, Floats b, Floats& low, Floats& high) {
  constexpr Words kTurn = kLane / 2 + kLane % 2 * uint32_t(kLanes);
  low = __builtin_shuffle(a, b, kTurn);
  high = __builtin_shuffle(a, b, kTurn + uint32_t(kLanes / 2));
}

// to [whole(width), whole(rows)] <- from [rows, width] transposed, 32 bits an element; the rest is zero
inline void transpose(long rows, long width, const float* from, long ldf, float* to, long ldt) {
  constexpr int kStages = kLanes == 16 ? 4 : kLanes == 8 ? 3 : 2;
  for (long r = 0; r < rows; r += kLanes)
    for (long w = 0; w < width; w += kLanes) {
      Floats x[kLanes], y[kLanes];
#pragma GCC unroll 16
      for (long i = 0; i < kLanes; ++i) y[i] = r + i < rows ? load_some(from + (r + i) * ldf + w, width - w) : Floats{};
      // each stage exchanges halves: behind stage s, lanes and rows have traded bit s of their number
#pragma GCC unroll 4
      for (int stage = 0; stage < kStages; ++stage) {
#pragma GCC unroll 16
        for (long i = 0; i < kLanes; ++i) x[i] = y[i];
#pragma GCC unroll 16
        for (long i = 0; i < kLanes / 2; ++i) interleave(x[i], x[i + kLanes / 2], y[2 * i], y[2 * i + 1]);
      }
#pragma GCC unroll 16
      for (long i = 0; i < kLanes; ++i) store(to + (w + i) * ldt + r, y[i]);
    }
}

// --- how E holds numbers of T ---

template <class E>
struct Operands;

template <>
struct Operands<float> {
  static constexpr long kOf = 1;  // numbers of an element

  // a left matrix [rows, width], as it lies there or copied to `to`, and the distance of its rows
  template <class T>
  static const float* left(const T* from, long stride, long rows, long width, float* to, long& ld) {
    ld = whole(width);
    for (long i = 0; i < rows; ++i)
      for (long w = 0; w < width; w += kLanes) store(to + i * ld + w, load_some(from + i * stride + w, width - w));
    return to;
  }

  // the right matrix of a sum over its rows, [rows / kOf, whole(width)]; `left` is the same as a left matrix
  template <class T>
  static const float* right(const float* left, const T*, long, long, long, float*) { return left; }

  // the right matrix of a sum over its columns, [width / kOf, L]
  template <class T>
  static void turned(const float* left, const T*, long, long rows, long width, float* to, long L) {
    transpose(rows, width, left, whole(width), to, L);
  }

  static void put(float* row, long j, Floats x) { store(row + j, x); }
};

template <>
struct Operands<Pair> {
  static constexpr long kOf = 2;

  static const Pair* left(const BFloat16* from, long stride, long, long, Pair*, long& ld) {
    ld = stride / 2;
    return (const Pair*)from;
  }

  static const Pair* right(const Pair*, const BFloat16* from, long stride, long rows, long width, Pair* to) {
    const long W = whole(width);
    for (long i = 0; i < rows; i += 2)
      for (long w = 0; w < width; w += kLanes) {
        const BFloat16* at = from + i * stride + w;
        Words low = (Words)load_some(at, width - w) >> 16;
        Words high = i + 1 < rows ? (Words)load_some(at + stride, width - w) : Words{};
        store((float*)(to + i / 2 * W + w), (Floats)(low | high));
      }
    return to;
  }

  static void turned(const Pair*, const BFloat16* from, long stride, long rows, long width, Pair* to, long L) {
    transpose(rows, width / 2, (const float*)from, stride / 2, (float*)to, L);
  }

  static void put(Pair* row, long j, Floats x) { store((BFloat16*)row + j, x); }
};

}  // namespace tagsds
