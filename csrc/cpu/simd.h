// Vectors of floats for the kernels: as wide as the variant's registers, through GCC's vector extensions, so that one
// source serves every variant; intrinsics only where the compiler finds no good instruction by itself.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef UNDIVIDED_VARIANT
#error "simd.h is for kernel files, which are compiled once per variant"
#endif

#define UNDIVIDED_INLINE inline __attribute__((always_inline))

namespace undivided::UNDIVIDED_VARIANT {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

// Elements in memory; arithmetic is in float only.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

UNDIVIDED_INLINE Vec broadcast(float value) { return value - Vec{}; }
UNDIVIDED_INLINE Vec zeros() { return Vec{}; }

UNDIVIDED_INLINE UintVec bits_of(Vec v) {
  UintVec u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}
UNDIVIDED_INLINE Vec of_bits(UintVec u) {
  Vec v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

// ---- conversions ----

UNDIVIDED_INLINE Vec widen_bfloat16(HalfVec h) { return of_bits(__builtin_convertvector(h, UintVec) << 16); }

// Round to nearest even; a NaN stays one.
UNDIVIDED_INLINE HalfVec narrow_bfloat16(Vec v) {
  const UintVec u = bits_of(v);
  UintVec rounded = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
  const UintVec nan = (UintVec)(v != v);
  rounded = (nan & ((u >> 16) | 0x40U)) | (~nan & rounded);
  return __builtin_convertvector(rounded, HalfVec);
}

UNDIVIDED_INLINE Vec widen_float16(HalfVec h) {
#if defined(__AVX512F__)
  __m256i in;
  std::memcpy(&in, &h, sizeof in);
  return (Vec)_mm512_cvtph_ps(in);
#elif defined(__AVX2__)
  __m128i in;
  std::memcpy(&in, &h, sizeof in);
  return (Vec)_mm256_cvtph_ps(in);
#else
  // Place exponent and mantissa, then let a multiplication by 2^112 fix the bias, denormals included.
  const UintVec u = __builtin_convertvector(h, UintVec);
  const UintVec sign = (u & 0x8000U) << 16;
  const UintVec special = (UintVec)((u & 0x7c00U) == 0x7c00U);
  const Vec scaled = of_bits((u & 0x7fffU) << 13) * broadcast(0x1p112F);
  const UintVec finite = bits_of(scaled);
  const UintVec infinite = 0x7f800000U | ((u & 0x3ffU) << 13);
  return of_bits(sign | (special & infinite) | (~special & finite));
#endif
}

UNDIVIDED_INLINE HalfVec narrow_float16(Vec v) {
#if defined(__AVX512F__)
  const __m256i out = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  HalfVec h;
  std::memcpy(&h, &out, sizeof h);
  return h;
#elif defined(__AVX2__)
  const __m128i out = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  HalfVec h;
  std::memcpy(&h, &out, sizeof h);
  return h;
#else
  const UintVec u = bits_of(v);
  const UintVec sign = (u >> 16) & 0x8000U;
  const UintVec magnitude = u & 0x7fffffffU;
  // Normal results: round to nearest even on the bits, with the bias changed from 127 to 15.
  const UintVec normal = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  // Denormal results: adding 0.5 makes the unit of the sum's mantissa 2^-24, so the addition does the rounding.
  const UintVec denormal = bits_of(of_bits(magnitude) + broadcast(0.5F)) - 0x3f000000U;
  const UintVec small = (UintVec)(magnitude < (113U << 23));
  const UintVec large = (UintVec)(magnitude >= 0x477ff000U);
  const UintVec nan = (UintVec)(v != v);
  UintVec out = (small & denormal) | (~small & normal);
  out = (large & 0x7c00U) | (~large & out);
  out = (nan & 0x7e00U) | (~nan & out);
  return __builtin_convertvector(sign | out, HalfVec);
#endif
}

// ---- memory ----

UNDIVIDED_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
UNDIVIDED_INLINE Vec load(const bfloat16* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  return widen_bfloat16(h);
}
UNDIVIDED_INLINE Vec load(const float16* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  return widen_float16(h);
}

UNDIVIDED_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
UNDIVIDED_INLINE void store(bfloat16* p, Vec v) {
  const HalfVec h = narrow_bfloat16(v);
  std::memcpy(p, &h, sizeof h);
}
UNDIVIDED_INLINE void store(float16* p, Vec v) {
  const HalfVec h = narrow_float16(v);
  std::memcpy(p, &h, sizeof h);
}

// The first n elements, the other lanes 0; n < kLanes.
template <class T>
UNDIVIDED_INLINE Vec load_part(const T* p, int n) {
  T buffer[kLanes] = {};
  for (int lane = 0; lane < n; ++lane) buffer[lane] = p[lane];
  return load(buffer);
}
template <class T>
UNDIVIDED_INLINE void store_part(T* p, Vec v, int n) {
  T buffer[kLanes];
  store(buffer, v);
  for (int lane = 0; lane < n; ++lane) p[lane] = buffer[lane];
}

// Stores past the caches, for outputs that no cache will hold; p is aligned to the vector in memory.
template <class T>
UNDIVIDED_INLINE void stream(T* p, Vec v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(p, (__m512)v);
  } else {
    T buffer[kLanes];
    store(buffer, v);
    __m256i h;
    std::memcpy(&h, buffer, sizeof h);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), h);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(p, (__m256)v);
  } else {
    T buffer[kLanes];
    store(buffer, v);
    __m128i h;
    std::memcpy(&h, buffer, sizeof h);
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), h);
  }
#else
  store(p, v);
#endif
}

// ---- arithmetic ----

UNDIVIDED_INLINE float sum(Vec v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

UNDIVIDED_INLINE Vec select(IntVec condition, Vec yes, Vec no) { return condition ? yes : no; }
UNDIVIDED_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
UNDIVIDED_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

}  // namespace undivided::UNDIVIDED_VARIANT
