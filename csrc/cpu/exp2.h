// exp2 for the softmax, whose scores are kept in units of log2(e).
#pragma once

#include "simd.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;
constexpr float kInfinity = __builtin_inff();

// 2^f for f in [0, 1] with p(0) = 1. Largest relative error: degree 4 3e-6 (far under a rounding of bfloat16),
// degree 5 8e-8 (under a rounding of float32).
template <int kDegree>
UNDIVIDED_INLINE Vec exp2_fraction(Vec f) {
  Vec p;
  if constexpr (kDegree == 4) {
    p = broadcast(0.013426688F);
    p = p * f + 0.05224247F;
    p = p * f + 0.24128021F;
    p = p * f + 0.69304484F;
  } else {
    static_assert(kDegree == 5);
    p = broadcast(0.0018671305F);
    p = p * f + 0.00901703F;
    p = p * f + 0.055799913F;
    p = p * f + 0.24016444F;
    p = p * f + 0.6931513F;
  }
  return p * f + 1.0F;
}

// 2^x for x from -126 to 127; NaN for NaN.
template <int kDegree>
UNDIVIDED_INLINE Vec exp2_normal(Vec x) {
#if defined(__AVX512F__)
  const Vec f = (Vec)_mm512_reduce_ps((__m512)x, 0x09);  // x - floor(x)
  return (Vec)_mm512_scalef_ps((__m512)exp2_fraction<kDegree>(f), (__m512)x);
#else
#if defined(__AVX2__)
  const Vec whole = (Vec)_mm256_floor_ps((__m256)x);
#else
  Vec whole = __builtin_convertvector(__builtin_convertvector(x, IntVec), Vec);
  whole = whole > x ? whole - 1.0F : whole;
#endif
  const IntVec exponent = (__builtin_convertvector(whole, IntVec) + 127) << 23;
  return exp2_fraction<kDegree>(x - whole) * of_bits((UintVec)exponent);
#endif
}

// 2^x. 0 for -inf and whatever is under the normal numbers, NaN for NaN. Intel's processors make and multiply denormal
// ones in microcode: far keys under ALiBi, whose weights they are, took most of the time.
template <int kDegree>
UNDIVIDED_INLINE Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec f = (Vec)_mm512_reduce_ps((__m512)x, 0x09);  // 0 for an infinity
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0F), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)exp2_fraction<kDegree>(f), (__m512)x);
#else
  // Written so that a NaN is never the one that a comparison drops.
  const Vec clamped = min(broadcast(127.0F), max(broadcast(-127.0F), x));
  const Vec result = exp2_normal<kDegree>(clamped);
  return x < -126.0F ? zeros() : result;
#endif
}

// log2 of what is above 0 and normal; NaN for NaN. With x = m 2^e and m from sqrt(1/2) to sqrt(2):
// log2(m) = 2 / ln(2) * atanh(z), z = (m - 1) / (m + 1), whose series is over 3e-9 after five terms.
UNDIVIDED_INLINE Vec log2(Vec x) {
  const UintVec shifted = bits_of(x) - 0x3f3504f3U;  // the bits of sqrt(1/2)
  const IntVec exponent = (IntVec)shifted >> 23;
  const Vec m = of_bits((shifted & 0x7fffffU) + 0x3f3504f3U);
  const Vec z = (m - 1.0F) / (m + 1.0F), square = z * z;
  Vec series = square * 0.11111111F + 0.14285714F;
  series = series * square + 0.2F;
  series = series * square + 0.33333333F;
  series = series * square + 1.0F;
  const Vec result = __builtin_convertvector(exponent, Vec) + z * series * (2.0F * kLog2E);
  return select(x == x, result, x);
}

UNDIVIDED_INLINE float largest(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float best = v[0];
  for (int lane = 1; lane < kLanes; ++lane) best = v[lane] > best ? v[lane] : best;
  return best;
#endif
}

UNDIVIDED_INLINE bool any(IntVec condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)condition) != 0;
#else
  return (condition[0] | condition[1] | condition[2] | condition[3]) != 0;
#endif
}

// tanh(x) for |x| under kNearZero to a rounding, where the difference of two numbers near 1 loses what x is.
constexpr float kNearZero = 0.3F;

UNDIVIDED_INLINE Vec tanh_near_zero(Vec x) {
  const Vec square = x * x;
  Vec series = square * 0.021869489F - 0.053968254F;  // of Taylor
  series = series * square + 0.13333333F;
  series = series * square - 0.33333333F;
  return series * square * x + x;
}

// cap * tanh(x), and the derivative of tanh to `slope`. Scores far under their cap, which are the many, need no exp.
UNDIVIDED_INLINE Vec capped(Vec x, float cap, Vec* slope) {
  const IntVec near = (x < kNearZero) & (x > -kNearZero);
  Vec tanh = tanh_near_zero(x);
  if (any(~near)) tanh = select(near, tanh, 1.0F - 2.0F / (exp2<5>(x * (2.0F * kLog2E)) + 1.0F));
  *slope = 1.0F - tanh * tanh;
  return tanh * cap;
}

}  // namespace undivided::UNDIVIDED_VARIANT
