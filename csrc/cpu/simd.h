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
#define UNDIVIDED_INLINE_LAMBDA __attribute__((always_inline))

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

// A vector that is used more than once, which GCC would read from memory again for each instruction that can take an
// operand from there. Norms' backward in bfloat16 had 14 loads a block instead of 20 by it: from the third-level cache
// of Zen 5 1.03 to 1.1 times as fast, from nearer ones no faster.
template <class V>
UNDIVIDED_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__AVX2__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// ---- conversions ----

// GCC splits __builtin_convertvector between widths into halves, so the wide variants name the instruction.
UNDIVIDED_INLINE UintVec widen_bits(HalfVec h) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (UintVec)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, UintVec);
#endif
}
UNDIVIDED_INLINE HalfVec narrow_bits(UintVec u) {
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtepi32_epi16((__m512i)u);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)u, (__m256i)u);
  return (HalfVec)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(u, HalfVec);
#endif
}

UNDIVIDED_INLINE Vec widen_bfloat16(HalfVec h) { return of_bits(widen_bits(h) << 16); }

// The upper 16 bits are those of the nearest bfloat16, ties to even; a NaN stays one. The lower bits mean nothing.
UNDIVIDED_INLINE UintVec round_bfloat16(Vec v) {
  const UintVec u = bits_of(v);
  const UintVec nan = (UintVec)(v != v);
  return (nan & (u | 0x400000U)) | (~nan & (u + 0x7fffU + ((u >> 16) & 1U)));
}

UNDIVIDED_INLINE HalfVec narrow_bfloat16(Vec v) {
#if defined(__AVX512BF16__)
  return (HalfVec)_mm512_cvtneps_pbh((__m512)v);  // takes denormals for zero
#else
  return narrow_bits(round_bfloat16(v) >> 16);
#endif
}

UNDIVIDED_INLINE Vec widen_float16(HalfVec h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps((__m128i)h);
#else
  // Place exponent and mantissa, then let a multiplication by 2^112 fix the bias, denormals included.
  const UintVec u = widen_bits(h);
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
  return (HalfVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (HalfVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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
  return narrow_bits(sign | out);
#endif
}

// ---- memory ----

UNDIVIDED_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The conversion that belongs to a pointer's element type.
UNDIVIDED_INLINE Vec widen(const bfloat16*, HalfVec h) { return widen_bfloat16(h); }
UNDIVIDED_INLINE Vec widen(const float16*, HalfVec h) { return widen_float16(h); }
UNDIVIDED_INLINE HalfVec narrow(const bfloat16*, Vec v) { return narrow_bfloat16(v); }
UNDIVIDED_INLINE HalfVec narrow(const float16*, Vec v) { return narrow_float16(v); }

template <class Half>
UNDIVIDED_INLINE Vec load(const Half* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  return widen(p, h);
}

UNDIVIDED_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
template <class Half>
UNDIVIDED_INLINE void store(Half* p, Vec v) {
  const HalfVec h = narrow(p, v);
  std::memcpy(p, &h, sizeof h);
}

// The first n elements, the other lanes 0; n < kLanes.
template <class T>
UNDIVIDED_INLINE Vec load_part(const T* p, int n) {
#if defined(__AVX512F__)
  const __mmask16 first = static_cast<__mmask16>((1U << n) - 1U);
  if constexpr (sizeof(T) == 4) {
    return (Vec)_mm512_maskz_loadu_ps(first, p);
  } else {
    return widen(p, (HalfVec)_mm256_maskz_loadu_epi16(first, p));
  }
#else
  T buffer[kLanes] = {};
  for (int lane = 0; lane < n; ++lane) buffer[lane] = p[lane];
  return load(buffer);
#endif
}
template <class T>
UNDIVIDED_INLINE void store_part(T* p, Vec v, int n) {
#if defined(__AVX512F__)
  const __mmask16 first = static_cast<__mmask16>((1U << n) - 1U);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, first, (__m512)v);
  } else {
    _mm256_mask_storeu_epi16(p, first, (__m256i)narrow(p, v));
  }
#else
  T buffer[kLanes];
  store(buffer, v);
  for (int lane = 0; lane < n; ++lane) p[lane] = buffer[lane];
#endif
}

// Stores past the caches, for outputs that no cache will hold; p is aligned to the vector in memory.
template <class T>
UNDIVIDED_INLINE void stream(T* p, Vec v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(p, (__m512)v);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)narrow(p, v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(p, (__m256)v);
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)narrow(p, v));
  }
#else
  store(p, v);
#endif
}

// ---- arithmetic ----

UNDIVIDED_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

UNDIVIDED_INLINE Vec select(IntVec condition, Vec yes, Vec no) { return condition ? yes : no; }

// b where one of the two is NaN. Of the comparison alone GCC makes two instructions, one of them into a mask.
UNDIVIDED_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
UNDIVIDED_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

// 1 / x, for x from 2^-125 to 2^125; NaN for NaN. `rough` is within a factor of 1 +- 6.2e-5.
UNDIVIDED_INLINE Vec rough_reciprocal(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_rcp14_ps((__m512)x);
#else
  return 1.0F / x;
#endif
}
UNDIVIDED_INLINE Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  // One step of Newton's; what is left of 1 is lost where it is not made by a fused multiply-add.
  const __m512 rough = (__m512)rough_reciprocal(x);
  const __m512 left = _mm512_fnmadd_ps((__m512)x, rough, _mm512_set1_ps(1.0F));
  return (Vec)_mm512_fmadd_ps(rough, left, rough);
#else
  return 1.0F / x;
#endif
}

}  // namespace undivided::UNDIVIDED_VARIANT
