// The feed-forward network between its matrix products, as plain data. All matrices are (rows, columns), contiguous;
// columns is d_ff.
#pragma once

#include <cstdint>

#include "variant.h"

namespace undivided {

constexpr int kRelu = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3;

struct FeedForwardForward {
  const void* h;     // (rows, columns), dtype: x w_in^T
  const void* bias;  // (columns,), dtype, or null
  const void* gate;  // (rows, columns), dtype: x w_gate^T, or null
  void* kept;        // (rows, columns), dtype: h + bias, may be h; null where nobody needs it
  void* a;           // (rows, columns), dtype: act(h + bias) [* gate]; may be h
  int64_t rows, columns;
  int dtype, activation, threads;
};

struct FeedForwardBackward {
  const void* da;    // (rows, columns), dtype
  const void* h;     // (rows, columns), dtype: with the bias
  const void* gate;  // (rows, columns), dtype, or null
  void* dh;          // (rows, columns), dtype; may be da
  void* dgate;       // (rows, columns), dtype, or null without a gate
  void* a;           // (rows, columns), dtype: made again, or null where nobody needs it
  void* dbias;       // (columns,), dtype: sums over the rows of dh, or null
  int64_t rows, columns;
  int dtype, activation, threads;
};

}  // namespace undivided

UNDIVIDED_DECLARE(void feed_forward_forward(const FeedForwardForward& call))
UNDIVIDED_DECLARE(void feed_forward_backward(const FeedForwardBackward& call))
