// What the host prepares for the attention forward: which kernel, the list of tiles, and what the copy engine reads.
#pragma once

#include <stdexcept>
#include <string>

#include "attention.h"
#include "attention_forward.cuh"

namespace undivided::cuda {

// A tensor as the copy engine sees it, and the box that it copies at a time: sizes in elements, strides in bytes.
// The dimensions are (column, head, row, batch row).
struct Boxes {
  void* data;
  uint64_t size[4], stride[4];
  uint32_t box[4];
};

inline Boxes boxes_of(const Rows& rows, int64_t head_dim, int64_t nheads, int64_t seqlen, int64_t batch) {
  auto size = [](int64_t stride, int64_t count) { return static_cast<uint64_t>(stride == 0 ? 1 : count); };
  // The stride of a dimension of one element is never used, but must be one that is allowed.
  auto bytes = [](int64_t stride) { return static_cast<uint64_t>(stride == 0 ? 16 : 2 * stride); };
  return {rows.data,
          {static_cast<uint64_t>(head_dim), size(rows.h, nheads), static_cast<uint64_t>(seqlen), size(rows.b, batch)},
          {2, bytes(rows.h), bytes(rows.s), bytes(rows.b)},
          {kPanel, 1, kTileM, 1}};
}
static_assert(kTileM == kTileN, "queries and keys are copied by boxes of one size");

inline Boxes boxes_of_q(const AttentionForward& job) {
  return boxes_of(job.q, job.head_dim, job.nheads, job.rows_q, job.batch);
}
inline Boxes boxes_of_k(const AttentionForward& job) {
  return boxes_of(job.k, job.head_dim, job.nheads_kv, job.rows_k, job.batch);
}
inline Boxes boxes_of_v(const AttentionForward& job) {
  return boxes_of(job.v, job.head_dim, job.nheads_kv, job.rows_k, job.batch);
}

inline Schedule schedule_of(const AttentionForward& job) {
  // Tiles are counted, and the copy engine's coordinates are, by 32 bits; a little room for counting past the end.
  constexpr int64_t most = INT32_MAX - (1 << 20);
  const int64_t tiles = (static_cast<int64_t>(job.seqlen_q) / kTileM + 1) * job.batch * job.nheads;
  if (tiles > most || job.rows_q > most || job.rows_k > most) {
    throw std::runtime_error("too large: " + std::to_string(tiles) + " tiles of " + std::to_string(job.rows_q) +
                             " rows of queries and " + std::to_string(job.rows_k) + " of keys, at most " +
                             std::to_string(most) + " of each");
  }
  const int64_t head_bytes = 2 * 2 * static_cast<int64_t>(job.seqlen_k) * job.head_dim;
  return make_schedule(job.batch, job.nheads, job.nheads / job.nheads_kv, job.seqlen_q, kTileM, head_bytes,
                       job.has_right);
}

// Calls function(Kind<...>{}) with the kind of kernel that runs the job.
template <class Function>
void with_kind(const AttentionForward& job, Function function) {
  const bool plain = job.scale > 0 && job.softcap == 0 && job.values == nullptr && job.slopes == nullptr;
  auto with_element = [&](auto element) {
    using Element = decltype(element);
    if (job.head_dim == 64 && plain) return function(Kind<Element, 64, true>{});
    if (job.head_dim == 64) return function(Kind<Element, 64, false>{});
    if (job.head_dim == 128 && plain) return function(Kind<Element, 128, true>{});
    if (job.head_dim == 128) return function(Kind<Element, 128, false>{});
    throw std::runtime_error("head_dim " + std::to_string(job.head_dim) + " is not one of 64, 128");
  };
  if (job.dtype == Dtype::bfloat16) return with_element(Bfloat16{});
  if (job.dtype == Dtype::float16) return with_element(Float16{});
  throw std::runtime_error("dtype code " + std::to_string(static_cast<int>(job.dtype)) + " is not one of 1, 2");
}

}  // namespace undivided::cuda
