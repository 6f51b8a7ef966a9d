// Attention, forward and backward: the calls, as plain data. Strides count elements; head_dim is contiguous.
#pragma once

#include <cstdint>

#include "variant.h"

namespace undivided {

// (batch, seqlen, nheads, head_dim) by strides; a packed tensor (total, nheads, head_dim) has b = 0.
struct Rows {
  void* data;
  int64_t b, s, h;
};

// (batch, nheads, seqlen_q, seqlen_k) by strides: n is 0 or 1, the others are anything. data is null when absent.
struct Plane {
  void* data;
  int64_t b, h, m, n;
  int dtype;
};

struct AttentionCall {
  Rows q, k, v;
  int dtype;
  int64_t batch, nheads, nheads_kv, head_dim, head_dim_v;
  int64_t seqlen_q, seqlen_k;     // in a packed batch the longest
  const int32_t* key_lengths;     // (batch,) or null
  const int32_t* query_lengths;   // (batch,) or null
  const int32_t *cu_q, *cu_k;     // (batch + 1,), or null: not packed
  const int32_t* shifts;          // (batch,) or null: where query 0 stands on the key axis
  bool own_shift;                 // `shift` holds for all; otherwise it is lenk - lenq in a packed batch
  int64_t shift;
  bool has_left, has_right;       // query i sees keys from i + shift - left to i + shift + right
  int64_t left, right;
  Plane bias;                     // any of the three types
  Plane mask;                     // bytes, not 0 is visible
  const float* table;             // (num_buckets, nheads) by strides, or null: the bias of a bucket of distances
  int64_t table_row, table_column;
  const int32_t* buckets;         // (2 * span + 1,): the table's row for each distance, constant beyond the span
  int64_t span;
  const float* slopes;            // (batch, nheads) by strides or null: ALiBi
  int64_t slopes_b, slopes_h;
  const float* sinks;             // (nheads,) or null
  float scale, softcap;           // softcap 0 is off
  bool dropout;
  uint32_t state, threshold;      // of the counter hash, see dropout.h
  float keep_scale;
  int threads;
};

// Rows of float32 gradients start at multiples of this many elements.
constexpr int64_t kGradientAlign = 16;

struct AttentionForward {
  AttentionCall call;
  Rows out;                // q's dtype
  float* lse;              // (batch, nheads, seqlen_q), or (nheads, total_q) with b = 0; null where nobody needs it
  int64_t lse_b, lse_h;
  bool in_tiles;           // few queries, too, sum in the order of many
};

// Few queries over long keys, which are read where they lie: the keys and values in caches of any capacity, perhaps in
// blocks, and new ones written into them on the way. In `attention`, k and v are the caches, (batch, seqlen_k, ...), or
// (num_blocks, block_size, ...) with b the stride of the blocks. It has no packing, no query_lengths and no dropout.
struct AttentionDecode {
  AttentionForward attention;
  const int32_t* cache_lengths;  // (batch,): tokens in the caches before the call, and the last query stands at the
                                 // last key; null: no caches, keys and positions are those of `attention`
  Rows k, v;                     // (batch, seqlen_new, nheads_kv, head_dim): the new ones, behind those in the caches
  int64_t seqlen_new;
  const int32_t* blocks;         // (batch, most_blocks) or null: the number of each block of keys of a row
  int64_t blocks_b, block_size;
};

struct AttentionBackward {
  AttentionCall call;
  Rows out, dout, dq, dk, dv;  // the call's dtype
  const float* lse;            // as in the forward
  const float* dlse;           // like lse, or null
  float* lse2;                 // like lse, to be filled: lse * log2(e), +inf for a row that sees no key
  float* delta;                // like lse, to be filled: sum(out * dout, -1) - dlse
  int64_t lse_b, lse_h;
  int64_t chunks;              // the keys of a sequence are cut in this many parts, each a task of its own
  float* dq_parts;             // (chunks, *lse's shape, head_dim rounded up to kGradientAlign); null: scratch will do,
                               // with one chunk only
  int64_t lse_size;            // elements of lse
  Plane dbias;                 // float32, zeros, stride 0 where summed; null where not needed
  int64_t dbias_chunk;         // stride between the parts of the chunks where the sum goes over keys, else 0
  bool sum_batch, sum_heads;   // the bias is shared by the batch / by the heads: their tasks are one
  float* distance_sums;        // (chunks, batch, nheads, 2 * span + 1), zeros, or null
  float* dtable;               // (num_buckets, nheads), zeros, or null
  float* sink_sums;            // (batch, nheads), to be filled, or null
  float* dsinks;               // (nheads,) or null
};

}  // namespace undivided

UNDIVIDED_DECLARE(void attention_forward(const AttentionForward& job))
UNDIVIDED_DECLARE(void attention_decode(const AttentionDecode& job))
UNDIVIDED_DECLARE(void attention_backward(const AttentionBackward& job))
