// What the host prepares for attention: which kernel, the list of tiles, and what the copy engine reads.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "attention.h"
#include "attention_backward.cuh"
#include "attention_forward.cuh"
#include "boxes.h"

namespace undivided::cuda {

inline Boxes boxes_of(const Rows& rows, int64_t head_dim, int64_t nheads, int64_t seqlen, int64_t batch,
                      uint32_t height) {
  auto size = [](int64_t stride, int64_t count) { return static_cast<uint64_t>(stride == 0 ? 1 : count); };
  // The stride of a dimension of one element is never used, but must be one that is allowed.
  auto bytes = [](int64_t stride) { return static_cast<uint64_t>(stride == 0 ? 16 : 2 * stride); };
  return {rows.data,
          {static_cast<uint64_t>(head_dim), size(rows.h, nheads), static_cast<uint64_t>(seqlen), size(rows.b, batch)},
          {2, bytes(rows.h), bytes(rows.s), bytes(rows.b)},
          {kPanel, 1, height, 1}};
}

// rows: q or dout, k or v; height: the rows of a tile.
inline Boxes boxes_of_queries(const AttentionForward& job, const Rows& rows, uint32_t height) {
  return boxes_of(rows, job.head_dim, job.nheads, job.rows_q, job.batch, height);
}
inline Boxes boxes_of_keys(const AttentionForward& job, const Rows& rows) {
  return boxes_of(rows, job.head_dim, job.nheads_kv, job.rows_k, job.batch, kTileN);
}

// Tiles are counted, and the copy engine's coordinates are, by 32 bits; a little room for counting past the end.
inline void check_sizes(const AttentionForward& job, int64_t tiles) {
  constexpr int64_t most = INT32_MAX - (1 << 20);
  if (tiles > most || job.rows_q > most || job.rows_k > most) {
    throw std::runtime_error("too large: " + std::to_string(tiles) + " tiles of " + std::to_string(job.rows_q) +
                             " rows of queries and " + std::to_string(job.rows_k) + " of keys, at most " +
                             std::to_string(most) + " of each");
  }
}

inline Schedule schedule_of(const AttentionForward& job, int32_t tile_m) {
  check_sizes(job, (static_cast<int64_t>(job.seqlen_q) / tile_m + 1) * job.batch * job.nheads);
  const int64_t head_bytes = 2 * 2 * static_cast<int64_t>(job.seqlen_k) * job.head_dim;
  return make_schedule(job.batch, job.nheads, job.nheads / job.nheads_kv, job.seqlen_q, tile_m, head_bytes,
                       job.has_right);
}

// Tiles of keys. Under a right bound the first keys are seen by most queries, so they are first already. What a head
// moves through the L2 cache are its queries, the gradients of their outputs and the float32 sums.
inline Schedule backward_schedule_of(const AttentionForward& job) {
  check_sizes(job, (static_cast<int64_t>(job.seqlen_k) / kTileN + 1) * job.batch * job.nheads_kv);
  const int64_t head_bytes = (2 + 2 + 4) * static_cast<int64_t>(job.seqlen_q) * job.head_dim;
  return make_schedule(job.batch, job.nheads_kv, 1, job.seqlen_k, kTileN, head_bytes * (job.nheads / job.nheads_kv),
                       false);
}

// The grid of what goes before and after: 64 rows, head, batch row.
struct Grid {
  uint32_t x, y, z;
};
inline Grid grid_of_rows(const AttentionForward& job) {
  constexpr int32_t most = 65535;
  if (job.batch > most || job.nheads > most) {
    throw std::runtime_error("too large: batch " + std::to_string(job.batch) + " and nheads " +
                             std::to_string(job.nheads) + ", at most " + std::to_string(most) + " each");
  }
  const auto blocks = static_cast<uint32_t>((job.seqlen_q + kPadding - 1) / kPadding) * (kPadding / kGroupRows);
  return {blocks, static_cast<uint32_t>(job.nheads), static_cast<uint32_t>(job.batch)};
}

inline bool is_plain(const AttentionForward& job) {
  return job.scale > 0 && job.softcap == 0 && job.values == nullptr && job.slopes == nullptr;
}

// Calls function(element, integral constant of head_dim) for the job's.
template <class Function>
void with_sizes(const AttentionForward& job, Function function) {
  auto with_element = [&](auto element) {
    using Element = decltype(element);
    if (job.head_dim == 64) return function(Element{}, std::integral_constant<int, 64>{});
    if (job.head_dim == 128) return function(Element{}, std::integral_constant<int, 128>{});
    throw std::runtime_error("head_dim " + std::to_string(job.head_dim) + " is not one of 64, 128");
  };
  if (job.dtype == Dtype::bfloat16) return with_element(Bfloat16{});
  if (job.dtype == Dtype::float16) return with_element(Float16{});
  throw std::runtime_error("dtype code " + std::to_string(static_cast<int>(job.dtype)) + " is not one of 1, 2");
}

// Three warpgroups hide more of the softmax of narrow heads: on an H200 1.14 to 1.2 times as fast from 2048 queries on,
// 1.09 at 512. Under a right bound short sequences have too few of the larger tiles: 0.9 up to 1024. Nor may the larger
// tiles be empty in larger parts.
inline bool three_groups(const AttentionForward& job) {
  constexpr int few = 1536, two = 2 * kGroupRows, three = 3 * kGroupRows;
  if (job.has_right && job.seqlen_q <= few) return false;
  auto rows = [&](int64_t tile) { return (job.seqlen_q + tile - 1) / tile * tile; };
  return rows(three) * 5 <= rows(two) * 6;
}

// Calls function(kind) with the kind of kernel that runs the job.
template <class Function>
void with_kind(const AttentionForward& job, Function function) {
  with_sizes(job, [&](auto element, auto head_dim) {
    using Element = decltype(element);
    constexpr int HEAD_DIM = decltype(head_dim)::value;
    if (!is_plain(job)) return function(Kind<Element, HEAD_DIM, false, 2>{});
    if (HEAD_DIM == 64 && three_groups(job)) {
      return function(Kind<Element, HEAD_DIM, true, HEAD_DIM == 64 ? 3 : 2>{});
    }
    return function(Kind<Element, HEAD_DIM, true, 2>{});
  });
}

template <class Function>
void with_backward_kind(const AttentionBackward& job, Function function) {
  if (job.call.softcap != 0) throw std::runtime_error("the backward has no softcap");
  if (job.by_distance != nullptr && job.call.span > kMostSpan) {
    throw std::runtime_error("a span of " + std::to_string(job.call.span) + ", at most " + std::to_string(kMostSpan));
  }
  with_sizes(job.call, [&](auto element, auto head_dim) {
    using Element = decltype(element);
    constexpr int HEAD_DIM = decltype(head_dim)::value;
    if (is_plain(job.call)) return function(BackwardKind<Element, HEAD_DIM, true>{});
    if (job.by_distance != nullptr) return function(BackwardKind<Element, HEAD_DIM, false, true>{});
    return function(BackwardKind<Element, HEAD_DIM, false>{});
  });
}

}  // namespace undivided::cuda
