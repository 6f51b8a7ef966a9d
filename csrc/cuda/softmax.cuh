// The running softmax of a warpgroup's 64 rows over tiles of scores (Dao et al. 2022, section 3.1).
//
// Each thread has two rows in part, as tile_layout.cuh says; the four threads of a quad have a row between them.
#pragma once

#include "tile_layout.cuh"
#include "ptx.cuh"

namespace undivided::cuda {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLn2 = 0.6931471805599453F;
constexpr float kLog2e = 1.4426950408889634F;

DEVICE float quad_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}
DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// For each of the thread's two rows the largest score, and the sum of the probabilities relative to it: of the row in
// the one, of the thread's own elements in the other.
struct Softmax {
  float top[2] = {-kInfinity, -kInfinity};
  float total[2] = {0.0F, 0.0F};
};

// Scores to probabilities: s becomes exp2((s - top) * unit). shrink: what the older sums of each row shrink by.
// A NaN is passed over by the maxima and reaches its row's sum.
template <int COUNT>
DEVICE void softmax_step(float (&s)[COUNT], Softmax& state, float unit, float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = state.top[half];
#pragma unroll
    for (int i = 2 * half; i < COUNT; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
    top = quad_max(top);
    const float base = top == -kInfinity ? 0.0F : top * unit;  // a row that has seen nothing yet
    shrink[half] = exp2_fast(state.top[half] * unit - base);
    float sum = 0.0F;
#pragma unroll
    for (int i = 2 * half; i < COUNT; i += 4) {
      s[i] = exp2_fast(s[i] * unit - base);
      s[i + 1] = exp2_fast(s[i + 1] * unit - base);
      sum += s[i] + s[i + 1];
    }
    state.total[half] = state.total[half] * shrink[half] + sum;
    state.top[half] = top;
  }
}

// The probabilities [64, 4 * COUNT] as the tensor cores take them from registers: 16 columns are four numbers.
template <class Element, int COUNT>
DEVICE void pack_weights(const float (&s)[2 * COUNT], uint32_t (&weights)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) weights[i] = packed<Element>(s[2 * i], s[2 * i + 1]);
}

template <int COUNT>
DEVICE void scale_rows(float (&acc)[COUNT], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) acc[i] *= factor[i / 2 % 2];
}

// Ends the softmax: acc becomes the output, and `lse` the natural logarithm of each row's denominator; 0 and -inf for a
// row that saw nothing or lies outside. sink: a logit that joins the denominator alone, where there is one.
template <int COUNT>
DEVICE void softmax_finish(float (&acc)[COUNT], const Softmax& state, float unit, const bool (&outside)[2],
                           const float* sink, float (&lse)[2]) {
  float factor[2];
  bool empty[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = quad_sum(state.total[half]);
    float top = state.top[half] == -kInfinity ? 0.0F : state.top[half] * unit;
    empty[half] = total == 0.0F || outside[half];
    float shrink = 1.0F;
    if (sink != nullptr) {
      const float other = *sink * kLog2e, higher = fmaxf(top, other);
      shrink = exp2_fast(top - higher);
      total = total * shrink + exp2_fast(other - higher);
      top = higher;
    }
    factor[half] = shrink / total;
    lse[half] = empty[half] ? -kInfinity : (top + log2_fast(total)) * kLn2;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) acc[i] = empty[i / 2 % 2] ? 0.0F : acc[i] * factor[i / 2 % 2];
}

}  // namespace undivided::cuda
