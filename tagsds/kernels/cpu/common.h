// Vectors of 16 floats, conversions, exp and the dropout bits: what the kernels of a CPU share.
//
// Written with GCC's vector extensions, so that one source serves AVX-512, AVX2 and NEON; compiled with -march=native.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <algorithm>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace tagsds {

constexpr long kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

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
#ifdef __AVX512BF16__
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
inline Floats first(Floats x, long count, float fill) {
  Words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < uint32_t(count) ? x : splat(fill);
}

// halves are added to each other: eight, four, two, one
inline float sum(Floats x) {
  x += __builtin_shuffle(x, (Words){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  x += __builtin_shuffle(x, (Words){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  x += __builtin_shuffle(x, (Words){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  x += __builtin_shuffle(x, (Words){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
  return x[0];
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// the highest of the 16
inline float highest(Floats x) {
  x = larger(x, __builtin_shuffle(x, (Words){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
  x = larger(x, __builtin_shuffle(x, (Words){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
  x = larger(x, __builtin_shuffle(x, (Words){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
  x = larger(x, __builtin_shuffle(x, (Words){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
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

// 1 / (1 - p) where the element is kept, else 0, for 16 columns from `column`
inline Floats keep_scale(uint32_t row, uint32_t column, uint32_t threshold, float scale) {
  Words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Words bits = mix<Words>((lane + column) * 0x85EBCA77u + row);
  return bits >= threshold ? splat(scale) : Floats{};
}

inline long whole(long n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace tagsds
