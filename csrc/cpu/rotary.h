// Rotary position embedding: the call, as plain data.
#pragma once

#include <cstdint>

#include "variant.h"

namespace undivided {

struct Rotary {
  const void* x;             // (batch, seqlen, nheads, 2 * half) by strides, the last of which is 1; dtype
  const float* cos;          // (longest, half), contiguous
  const float* sin;          // (longest, half), contiguous
  const int64_t* positions;  // (batch, seqlen) by strides, rows of cos and sin; null: a row's are one after the other
  const int32_t* starts;     // (batch,), or null for zeros: the first one, without positions, is starts[b] + shift
  int64_t shift;
  void* y;                   // as x, contiguous
  int64_t batch, seqlen, nheads, half, longest;
  int64_t x_b, x_s, x_h, positions_b, positions_s;  // strides, in elements
  bool inverse;                                     // turn by the negative angle
  int dtype;
  int threads;
};

}  // namespace undivided

UNDIVIDED_DECLARE(void rotary(const Rotary& call))
