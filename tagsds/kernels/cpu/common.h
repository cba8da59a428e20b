// Vectors of floats, conversions, exp and the dropout bits: what the kernels of a CPU share.
//
// Written with GCC's vector extensions, so that one source serves AVX-512, AVX2 and NEON; compiled with -march=native. A vector is
// as wide as a register: GCC keeps a wider one in memory, which made attention slower than padded SDPA on AVX2.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <algorithm>
#include <vector>

#ifndef TAGSDS_LANES  // a test compiles each width
#if defined(__AVX512F__)
#define TAGSDS_LANES 16
#elif defined(__AVX2__)
#define TAGSDS_LANES 8
#else  // NEON, SSE
#define TAGSDS_LANES 4
#endif
#endif

#if TAGSDS_LANES == 16
#define TAGSDS_EACH_LANE 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif TAGSDS_LANES == 8
#define TAGSDS_EACH_LANE 0, 1, 2, 3, 4, 5, 6, 7
#else
#define TAGSDS_EACH_LANE 0, 1, 2, 3
#endif

#if defined(__AVX512BF16__) && TAGSDS_LANES == 16
#define TAGSDS_PAIRS  // dot products of two bfloat16, and their rounding
#include <immintrin.h>
#endif

namespace tagsds {

constexpr long kLanes = TAGSDS_LANES;
typedef float Floats __attribute__((vector_size(TAGSDS_LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(TAGSDS_LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(TAGSDS_LANES * 2)));

constexpr Words kLane = {TAGSDS_EACH_LANE};  // the number of each lane

// bfloat16 is the upper half of a float
struct BFloat16 {
  uint16_t bits;
};

inline Floats splat(float x) { return x - Floats{}; }

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats load(const BFloat16* from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Words) << 16);
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// rounds to nearest, ties to even; nan stays nan
inline void store(BFloat16* to, Floats x) {
#ifdef TAGSDS_PAIRS
  __m256bh half = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy(to, &half, sizeof half);
#else
  Words bits = (Words)x;
  Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  Words nan = (Words)(x != x);
  rounded = (nan & 0x7FC0) | (~nan & rounded);
  Halves half = __builtin_convertvector(rounded, Halves);
  std::memcpy(to, &half, sizeof half);
#endif
}

inline float value(float x) { return x; }
inline float value(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
inline void put(float* to, float x) { *to = x; }
inline void put(BFloat16* to, float x) {
  float row[kLanes] = {x};
  BFloat16 out[kLanes];
  store(out, load(row));
  *to = out[0];
}

// `count` values, the rest of the vector `fill`
template <class T>
inline Floats load_some(const T* from, long count, float fill = 0.0f) {
  if (count >= kLanes) return load(from);
  float row[kLanes];
  for (long i = 0; i < kLanes; ++i) row[i] = i < count ? value(from[i]) : fill;
  return load(row);
}

template <class T>
inline void store_some(T* to, Floats x, long count) {
  if (count >= kLanes) return store(to, x);
  for (long i = 0; i < count; ++i) put(to + i, x[i]);
}

// the same where the width is known to be whole vectors: no branch
template <bool Whole, class T>
inline Floats get(const T* from, long count, float fill = 0.0f) {
  return Whole ? load(from) : load_some(from, count, fill);
}

template <bool Whole, class T>
inline void set(T* to, Floats x, long count) {
  Whole ? store(to, x) : store_some(to, x, count);
}

// the first `count` lanes of x, `fill` in the others
inline Floats first(Floats x, long count, float fill) { return kLane < uint32_t(count) ? x : splat(fill); }

// x with the lanes exchanged whose numbers differ by the bit `distance`
template <int distance>
inline Floats exchanged(Floats x) {
  return __builtin_shuffle(x, kLane ^ uint32_t(distance));
}

// halves are added to each other: eight, four, two, one
inline float sum(Floats x) {
  if constexpr (kLanes > 8) x += exchanged<8>(x);
  if constexpr (kLanes > 4) x += exchanged<4>(x);
  x += exchanged<2>(x);
  x += exchanged<1>(x);
  return x[0];
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// the highest of all lanes
inline float highest(Floats x) {
  if constexpr (kLanes > 8) x = larger(x, exchanged<8>(x));
  if constexpr (kLanes > 4) x = larger(x, exchanged<4>(x));
  x = larger(x, exchanged<2>(x));
  x = larger(x, exchanged<1>(x));
  return x[0];
}

// e^x to a last bit or two: 2^n * e^r with r in +-ln(2)/2, e^r by its Taylor series; 0 below -87
inline Floats exp(Floats x) {
  auto tiny = x < -87.0f;
  x = tiny ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  Floats n = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer
  Words exponent = (Words)n;
  n -= 12582912.0f;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats e = 1.0f / 5040 + splat(0.0f);
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  Floats out = (Floats)((Words)e + (exponent << 23));
  return tiny ? Floats{} : out;
}

// --- dropout: tagsds/kernels/dropout.py in C++ ---

template <class Word>
inline Word mix(Word bits) {
  bits ^= bits >> 16;
  bits *= 0x85EBCA6Bu;
  bits ^= bits >> 13;
  bits *= 0xC2B2AE35u;
  bits ^= bits >> 16;
  return bits;
}

inline uint32_t row_bits(uint32_t seed, uint64_t row) { return mix<uint32_t>(uint32_t(row * 0x9E3779B1ull) + seed); }

// 1 / (1 - p) where the element is kept, else 0, for the columns of a vector from `column`
inline Floats keep_scale(uint32_t row, uint32_t column, uint32_t threshold, float scale) {
  Words bits = mix<Words>((kLane + column) * 0x85EBCA77u + row);
  return bits >= threshold ? splat(scale) : Floats{};
}

inline long whole(long n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace tagsds
