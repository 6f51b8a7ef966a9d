// The two products of the feed-forward network that touch its activation, on a Hopper GPU: the calls, as plain data.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace undivided::cuda {

// The codes of csrc/cpu/feed_forward.h.
enum class Activation : int32_t { relu = 0, gelu = 1, gelu_tanh = 2, silu = 3 };

// A matrix of the call's dtype: rows are contiguous and begin `stride` elements apart. Base and stride are multiples of
// 16 bytes.
struct Strided {
  const void* data;  // or null
  int64_t stride;
};

// What both calls have. d_model and d_ff are multiples of 8; (rows, d_ff) is contiguous.
struct FeedForwardSizes {
  Dtype dtype;
  Activation activation;
  int64_t rows;
  int32_t d_model, d_ff;
  int32_t device;
  void* stream;  // a cudaStream_t
};

struct FeedForwardForward {
  FeedForwardSizes sizes;
  Strided x;            // (rows, d_model)
  Strided w_in, w_gate; // (d_ff, d_model); w_gate is null without a gate
  const void* b_in;     // (d_ff,) or null
  void *h, *g;          // (rows, d_ff), written: x w_in^T + b_in and x w_gate^T; null where nobody needs them
  void* a;              // (rows, d_ff), written: act(h) [g]
};

struct FeedForwardBackward {
  FeedForwardSizes sizes;
  Strided dout;         // (rows, d_model)
  Strided w_out;        // (d_model, d_ff)
  const void *h, *g;    // (rows, d_ff), of the forward; g is null without a gate
  void *dh, *dg, *a;    // (rows, d_ff), written; dg is null without a gate, a where nobody needs it
  float* sums;          // (rows / 64 rounded up, d_ff), written: column sums of dh; or null
};

// Start the kernels; rows is at least 1. Throw std::runtime_error with the call that failed and CUDA's reason.
void feed_forward_forward(const FeedForwardForward& job);
void feed_forward_backward(const FeedForwardBackward& job);

}  // namespace undivided::cuda
