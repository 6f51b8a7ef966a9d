// Attention on a Hopper GPU: the call, as plain data. Strides count elements; head_dim is contiguous.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace undivided::cuda {

// (batch, seqlen, nheads, head_dim) by strides; a packed tensor (total, nheads, head_dim) is a batch of one.
// Base and strides are multiples of 16 bytes. A dimension along which all is the same has stride 0.
struct Rows {
  void* data;
  int64_t b, s, h;
};

struct AttentionForward {
  Rows q, k, v, out;           // out: q's dtype
  float* lse;                  // (batch, nheads, seqlen_q), or (nheads, total_q) with lse_b = 0
  int64_t lse_b, lse_h;
  Dtype dtype;
  int32_t batch, nheads, nheads_kv, head_dim;
  int32_t seqlen_q, seqlen_k;  // in a packed batch the longest
  int64_t rows_q, rows_k;      // of the tensors: seqlen_q and seqlen_k, or in a packed batch the totals
  const int32_t* key_lengths;    // (batch,) or null
  const int32_t* query_lengths;  // (batch,) or null
  const int32_t *cu_q, *cu_k;    // (batch + 1,), or null: not packed
  const int32_t* shifts;         // (batch,) or null: where query 0 stands on the key axis
  bool own_shift;                // `shift` holds for all; otherwise it is lenk - lenq in a packed batch
  int64_t shift;
  bool has_left, has_right;      // query i sees keys from i + shift - left to i + shift + right
  int64_t left, right;
  const float* values;           // (nheads, 2 * span + 1) or null: the bias by distance, times log2(e)
  int32_t span;                  // beyond it the bias is constant
  const float* slopes;           // (batch, nheads) by strides, or null: ALiBi's, times log2(e)
  int64_t slopes_b, slopes_h;
  const float* sinks;            // (nheads,) or null
  float scale, softcap;          // softcap 0 is off
  int32_t* counter;              // one number that the kernel may write to
  int32_t device;
  void* stream;                  // a cudaStream_t
};

// The gradients of a call. Statistics and sums have a row for each row of a tile: sequence by sequence, each padded to a
// multiple of kPadding rows.
constexpr int32_t kPadding = 128;

struct AttentionBackward {
  AttentionForward call;  // out and lse: its results
  Rows dout, dq, dk, dv;
  const float* dlse;      // as lse, or null
  float *lse2, *delta;    // written: (batch, nheads, rows_padded), or (nheads, rows_padded) of a packed batch
  float* sums;            // written: the same rows of head_dim numbers each, in an order of its own
  float* by_distance;     // written: (batch, nheads, blocks of 128 keys, 2 * span + 1), or null: not wanted
  int64_t rows_padded;    // seqlen_q padded, or enough for all sequences of a packed batch
};

// Start the kernels. Throw std::runtime_error with the call that failed and CUDA's reason.
void attention_forward(const AttentionForward& job);
void attention_backward(const AttentionBackward& job);

}  // namespace undivided::cuda
