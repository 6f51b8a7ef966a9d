// Activations of the feed-forward network and their derivatives, a vector at a time. NaN stays NaN.
#pragma once

#include <type_traits>

#include "exp2.h"
#include "feed_forward.h"

namespace undivided::UNDIVIDED_VARIANT {

struct Activated {
  Vec value, slope;
};

UNDIVIDED_INLINE Vec magnitude(Vec x) { return of_bits(bits_of(x) & 0x7fffffffU); }
UNDIVIDED_INLINE Vec within(float most, Vec x) { return min(broadcast(most), max(broadcast(-most), x)); }

// Functions to as many digits as T has: for bfloat16, whose roundings are 4e-3, relative errors of 7e-5 are enough.
template <class T>
struct Enough {
  static UNDIVIDED_INLINE Vec exp2_of(Vec x) { return exp2_normal<5>(x); }
  static UNDIVIDED_INLINE Vec inverse(Vec x) { return reciprocal(x); }
};
template <>
struct Enough<bfloat16> {
  static UNDIVIDED_INLINE Vec exp2_of(Vec x) { return exp2_normal<4>(x); }
  static UNDIVIDED_INLINE Vec inverse(Vec x) { return rough_reciprocal(x); }
};

// e^-x for x from -87 to 87: neither the result nor 1 / (1 + the result) is denormal or infinite.
template <class T>
UNDIVIDED_INLINE Vec exponential_of_minus(Vec x) {
  return Enough<T>::exp2_of(x * -kLog2E);
}

template <int kActivation, class T>
struct Activation;

template <class T>
struct Activation<kRelu, T> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec zero = zeros(), one = broadcast(1.0F);
    return {max(zero, u), u > zero ? one : u - u};  // u - u: 0, or NaN for NaN
  }
};

// Phi(-a) e^(a^2 / 2) for a >= 0, Phi the normal distribution: t p(t), t = 1 / (1 + c a), the form of Abramowitz and
// Stegun 7.1.26, with polynomials fitted to a relative error of 3.2e-8 and, for bfloat16, 1.1e-5.
template <class T>
UNDIVIDED_INLINE Vec scaled_tail(Vec a) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const Vec t = Enough<T>::inverse(a * 0.32F + 1.0F);
    Vec p = broadcast(-0.06677383F);
    p = p * t + 0.13958382F;
    p = p * t + 0.049616120F;
    p = p * t + 0.12305037F;
    p = p * t + 0.12682834F;
    p = p * t + 0.12768969F;
    return p * t;
  } else {
    const Vec t = Enough<T>::inverse(a * 0.35F + 1.0F);
    Vec p = broadcast(-0.029145941138267517F);
    p = p * t + 0.1439717411994934F;
    p = p * t - 0.2557143568992615F;
    p = p * t + 0.15917426347732544F;
    p = p * t - 0.023109903559088707F;
    p = p * t + 0.10550802946090698F;
    p = p * t + 0.11983285844326019F;
    p = p * t + 0.13986186683177948F;
    p = p * t + 0.13962140679359436F;
    return p * t;
  }
}

// u Phi(u). The exponential serves the derivative too. It is not let under e^-80: the tail would be denormal, which
// Intel's processors multiply in microcode: a pass over values of 20 and more took 9 to 11 times as long.
template <class T>
struct Activation<kGelu, T> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    // Beyond 30 it is u or 0 to the last bit: infinities then make no NaN.
    const Vec cut = within(30.0F, u), a = magnitude(cut);
    const Vec e = Enough<T>::exp2_of(max(broadcast(-80.0F * kLog2E), a * a * (-0.5F * kLog2E)));
    const Vec tail = scaled_tail<T>(a) * e;
    const Vec phi = u > zeros() ? 1.0F - tail : tail;
    return {max(zeros(), u) - a * tail, cut * e * 0.3989422804F + phi};
  }
};

// 1 - s is written e s, which keeps its digits where s is near 1.
//
// u (1 + tanh(w)) / 2 is u / (1 + e^(-2 w)), w = sqrt(2 / pi) (u + 0.044715 u^3). From 9.9 on it is u to the last bit.
template <class T>
struct Activation<kGeluTanh, T> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec cut = within(9.9F, u), square = cut * cut;
    const Vec e = exponential_of_minus<T>(cut * (square * 0.07135481627F + 1.5957691216F));
    const Vec s = Enough<T>::inverse(e + 1.0F), slope_w = square * (3.0F * 0.07135481627F) + 1.5957691216F;
    return {max(broadcast(-9.9F), u) * s, cut * s * (e * s) * slope_w + s};
  }
};

template <class T>
struct Activation<kSilu, T> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec e = exponential_of_minus<T>(within(87.0F, u)), s = Enough<T>::inverse(e + 1.0F);
    return {u * s, s * (u * (e * s) + 1.0F)};
  }
};

}  // namespace undivided::UNDIVIDED_VARIANT
