// What happens to a tile of q k^T before the softmax: softcap, relative bias, ALiBi, and the mask.
#pragma once

#include "attention.h"
#include "mask.cuh"
#include "softmax.cuh"

namespace undivided::cuda {

// What one head adds to its scores.
struct HeadBias {
  const float* values;  // by distance, from -span to span, or null; times log2(e)
  float slope;          // of ALiBi, times log2(e); 0 is none
};

DEVICE HeadBias head_bias(const AttentionForward& job, int b, int h) {
  HeadBias bias{nullptr, 0.0F};
  if (job.values != nullptr) bias.values = job.values + static_cast<int64_t>(h) * (2 * job.span + 1);
  if (job.slopes != nullptr) bias.slope = job.slopes[b * job.slopes_b + h * job.slopes_h];
  return bias;
}

// The softcap, times log2(e). tanh(x) = 1 - 2 / (e^(2 x) + 1) neither overflows nor needs a library.
template <int COUNT>
DEVICE void cap(float (&s)[COUNT], float scale, float softcap) {
  const float inner = 2.0F * kLog2e * scale / softcap, outer = softcap * kLog2e;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) s[i] = outer - divide_fast(2.0F * outer, exp2_fast(s[i] * inner) + 1.0F);
}

// SIDE: 1 where queries are the rows of a tile and keys the columns, -1 where it is the other way round. Distances, key
// position minus query position, then grow along a row, or fall.

// Adds the relative bias. distance: of element 0; lowest, highest: in the tile.
// Far from the diagonal all elements have one bias; near it a thread reads the few distances that its rows have.
template <int SIDE, int COUNT>
DEVICE void add_by_distance(float (&s)[COUNT], const float* values, int span, int distance, int lowest, int highest) {
  if (highest <= -span || lowest >= span) {
    const float far = values[lowest >= span ? 2 * span : 0];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) s[i] += far;
    return;
  }
  auto at = [&](int where) { return values[span + (where < -span ? -span : where > span ? span : where)]; };
  // The second row is 8 below the first: its distances are those of the group of 8 columns before.
  float before[2] = {at(distance - 8 * SIDE), at(distance - 7 * SIDE)};
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    const float here[2] = {at(distance + 2 * i * SIDE), at(distance + (2 * i + 1) * SIDE)};
    s[i] += here[0];
    s[i + 1] += here[1];
    s[i + 2] += before[0];
    s[i + 3] += before[1];
    before[0] = here[0];
    before[1] = here[1];
  }
}

template <int SIDE, int COUNT>
DEVICE void add_slope(float (&s)[COUNT], float slope, int distance) {
  const float from = static_cast<float>(distance);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    s[i] -= slope * fabsf(from + static_cast<float>(SIDE * (i / 4 * 8 + i % 2 - i / 2 % 2 * 8)));
  }
}

// Scores with everything that is not a plain scale, times log2(e). i, j: query and key of element 0; first_i, first_j:
// of the tile, which has `rows` rows.
template <int SIDE, int COUNT>
DEVICE void transform(float (&s)[COUNT], const AttentionForward& job, const HeadBias& bias, int64_t shift, int i, int j,
                      int first_i, int first_j, int rows) {
  if (SIDE == 1 && job.softcap > 0.0F) {  // the backward has none
    cap(s, job.scale, job.softcap);
  } else {
    const float unit = job.scale * kLog2e;
#pragma unroll
    for (int n = 0; n < COUNT; ++n) s[n] *= unit;
  }
  const int distance = static_cast<int>(j - i - shift), first = static_cast<int>(first_j - first_i - shift);
  if (bias.values != nullptr) {
    const int along = 2 * COUNT - 1, down = rows - 1;
    add_by_distance<SIDE>(s, bias.values, job.span, distance, first - (SIDE == 1 ? down : along),
                          first + (SIDE == 1 ? along : down));
  }
  if (bias.slope != 0.0F) add_slope<SIDE>(s, bias.slope, distance);
}

// What a row does not see becomes -inf, whatever it was. column: the key of element 0; seen: by the thread's two rows.
template <int COUNT>
DEVICE void hide(float (&s)[COUNT], const Range (&seen)[2], int column) {
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
    const int j = column + n / 4 * 8 + n % 2;
    const Range& row = seen[n / 2 % 2];
    if (j < row.begin || j >= row.end) s[n] = -kInfinity;
  }
}

}  // namespace undivided::cuda
