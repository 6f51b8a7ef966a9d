// The activations and their slopes. NaN stays NaN; finite numbers of any size give the limits.
//
// gelu and gelu_tanh: Hendrycks and Gimpel 2016; silu: Elfwing et al. 2017. Each takes two steps of the special
// function unit, an exponential and a reciprocal: by the clocks, half of what there is while a tile of d_model 512 is
// multiplied.
#pragma once

#include "feed_forward.h"
#include "ptx.cuh"

namespace undivided::cuda {

constexpr float kActivationLog2e = 1.4426950408889634F;

struct Activated {
  float value, slope;
};

DEVICE float sigmoid_of_negated(float x) { return reciprocal_fast(1.0F + exp2_fast(x * kActivationLog2e)); }

template <Activation>
struct Activate;

// relu's slope at 0 is 0, as torch's.
template <>
struct Activate<Activation::relu> {
  DEVICE static float value(float u) { return most(u, 0.0F); }
  DEVICE static Activated both(float u) { return {most(u, 0.0F), u > 0.0F ? 1.0F : u - u}; }
};

// u Phi(u), with Phi(-a) = e^(-a^2 / 2) t p(t) and t = 1 / (1 + 0.2316 a) for a >= 0: Abramowitz and Stegun 7.1.26, to
// 8e-8. The exponential serves the slope too.
template <>
struct Activate<Activation::gelu> {
  struct Tail {
    float a, exponential, phi;  // the magnitude of u, e^(-u^2 / 2), Phi(-a)
  };
  DEVICE static Tail tail(float u) {
    const float a = least(fabsf(u), 30.0F);
    const float t = reciprocal_fast(a * 0.231641888F + 1.0F);
    const float e = exp2_fast(a * a * (-0.5F * kActivationLog2e));
    float p = 0.5307027145F;
    p = p * t - 0.7265760135F;
    p = p * t + 0.7107068705F;
    p = p * t - 0.142248368F;
    p = p * t + 0.127414796F;
    return {a, e, p * t * e};
  }
  DEVICE static float value(float u) {
    const Tail at = tail(u);
    return most(u, 0.0F) - at.a * at.phi;
  }
  DEVICE static Activated both(float u) {
    const Tail at = tail(u);
    const float phi = u > 0.0F ? 1.0F - at.phi : at.phi;
    return {most(u, 0.0F) - at.a * at.phi, u * at.exponential * 0.3989422804F + phi};
  }
};

// u (1 + tanh(w)) / 2 is u / (1 + e^(-2 w)), w = sqrt(2 / pi) (u + 0.044715 u^3).
template <>
struct Activate<Activation::gelu_tanh> {
  DEVICE static float value(float u) {
    return u * sigmoid_of_negated(u * (u * u * -0.07135481627F - 1.5957691216F));
  }
  DEVICE static Activated both(float u) {
    const float cut = most(least(u, 30.0F), -30.0F), square = cut * cut;  // beyond it the bend is 0
    const float s = sigmoid_of_negated(cut * (square * -0.07135481627F - 1.5957691216F));
    return {u * s, cut * s * (1.0F - s) * (square * (3.0F * 0.07135481627F) + 1.5957691216F) + s};
  }
};

template <>
struct Activate<Activation::silu> {
  DEVICE static float value(float u) { return u * sigmoid_of_negated(-u); }
  DEVICE static Activated both(float u) {
    const float s = sigmoid_of_negated(-u);
    return {u * s, s * (u * (1.0F - s) + 1.0F)};
  }
};

// Calls function(Activate<...>{}) with the one that is asked for.
template <class Function>
DEVICE void with_activation(Activation activation, Function function) {
  switch (activation) {
    case Activation::relu: return function(Activate<Activation::relu>{});
    case Activation::gelu: return function(Activate<Activation::gelu>{});
    case Activation::gelu_tanh: return function(Activate<Activation::gelu_tanh>{});
    case Activation::silu: return function(Activate<Activation::silu>{});
  }
}

}  // namespace undivided::cuda
