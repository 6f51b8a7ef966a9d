// Activations of the feed-forward network and their derivatives, a vector at a time. NaN stays NaN.
#pragma once

#include "exp2.h"
#include "feed_forward.h"

namespace undivided::UNDIVIDED_VARIANT {

struct Activated {
  Vec value, slope;
};

UNDIVIDED_INLINE Vec magnitude(Vec x) { return of_bits(bits_of(x) & 0x7fffffffU); }

// e^x, x cut to [-87, 87]: neither the result nor 1 / (1 + the result) is then denormal or infinite.
UNDIVIDED_INLINE Vec exponential(Vec x) {
  x = x > broadcast(87.0F) ? broadcast(87.0F) : x;
  x = x < broadcast(-87.0F) ? broadcast(-87.0F) : x;
  return exp2<5>(x * kLog2E);
}

// u cut to [-30, 30], beyond which every activation is u or 0 to the last bit: infinities then make no NaN.
UNDIVIDED_INLINE Vec within_30(Vec u) {
  u = u > broadcast(30.0F) ? broadcast(30.0F) : u;
  return u < broadcast(-30.0F) ? broadcast(-30.0F) : u;
}

template <int kActivation>
struct Activation;

template <>
struct Activation<kRelu> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec zero = zeros(), one = broadcast(1.0F);
    return {u < zero ? zero : u, u > zero ? one : u - u};  // u - u: 0, or NaN for NaN
  }
};

// u Phi(u), with Phi(-a) = e^(-a^2 / 2) t p(t), t = 1 / (1 + 0.35 a) for a >= 0: the form of Abramowitz and Stegun
// 7.1.26, with a polynomial fitted to a relative error of 3.2e-8. The exponential serves the derivative too. It is not
// let under e^-80: t p(t) of it would be denormal, which Intel's processors multiply in microcode: a pass over values of
// 20 and more took 9 to 11 times as long.
template <>
struct Activation<kGelu> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec cut = within_30(u), a = magnitude(cut);
    const Vec t = 1.0F / (a * 0.35F + 1.0F), half = a * a * -0.5F;
    const Vec e = exponential(half < broadcast(-80.0F) ? broadcast(-80.0F) : half);
    Vec p = broadcast(-0.029145941138267517F);
    p = p * t + 0.1439717411994934F;
    p = p * t - 0.2557143568992615F;
    p = p * t + 0.15917426347732544F;
    p = p * t - 0.023109903559088707F;
    p = p * t + 0.10550802946090698F;
    p = p * t + 0.11983285844326019F;
    p = p * t + 0.13986186683177948F;
    p = p * t + 0.13962140679359436F;
    const Vec tail = p * t * e;
    const Vec phi = u > zeros() ? 1.0F - tail : tail;
    return {(u < zeros() ? zeros() : u) - a * tail, cut * e * 0.3989422804F + phi};
  }
};

// 1 - s is written e s, which keeps its digits where s is near 1.
//
// u (1 + tanh(w)) / 2 is u / (1 + e^(-2 w)), w = sqrt(2 / pi) (u + 0.044715 u^3).
template <>
struct Activation<kGeluTanh> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec cut = within_30(u), square = cut * cut;
    const Vec twice_w = cut * (square * 0.07135481627F + 1.5957691216F);
    const Vec e = exponential(-twice_w), s = 1.0F / (e + 1.0F);
    const Vec slope_w = square * (3.0F * 0.07135481627F) + 1.5957691216F;
    return {u > broadcast(30.0F) ? u : cut * s, cut * s * (e * s) * slope_w + s};
  }
};

template <>
struct Activation<kSilu> {
  static UNDIVIDED_INLINE Activated of(Vec u) {
    const Vec e = exponential(-u), s = 1.0F / (e + 1.0F);
    return {u * s, s * (u * (e * s) + 1.0F)};
  }
};

}  // namespace undivided::UNDIVIDED_VARIANT
