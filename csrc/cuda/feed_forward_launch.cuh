// What the host prepares for the feed-forward network: which kernel, the tiles, and what the copy engine reads.
#pragma once

#include <stdexcept>
#include <string>

#include "boxes.h"
#include "feed_forward_backward.cuh"
#include "feed_forward_forward.cuh"

namespace undivided::cuda {

// x, dout.
inline Boxes boxes_of_left(const Strided& matrix, const FeedForwardSizes& sizes) {
  return boxes_of_matrix(matrix.data, matrix.stride, sizes.rows, sizes.d_model, kProductM);
}
// w_in, w_gate: along their rows.
inline Boxes boxes_of_maps_in(const Strided& matrix, const FeedForwardSizes& sizes) {
  return boxes_of_matrix(matrix.data, matrix.stride, sizes.d_ff, sizes.d_model, kProductN / 2);
}
inline Boxes boxes_of_map_out(const Strided& matrix, const FeedForwardSizes& sizes) {
  return boxes_of_matrix(matrix.data, matrix.stride, sizes.d_model, sizes.d_ff, kProductK);
}
// h, g.
inline Boxes boxes_of_hidden(const void* data, const FeedForwardSizes& sizes) {
  return boxes_of_matrix(data, sizes.d_ff, sizes.rows, sizes.d_ff, kProductM);
}

// Tiles are counted, and the copy engine's coordinates are, by 32 bits; a little room for counting past the end.
inline ProductTiles product_tiles(const FeedForwardSizes& sizes, int columns) {
  constexpr int64_t most = INT32_MAX - (1 << 20);
  const int64_t down = (sizes.rows + kProductM - 1) / kProductM;
  const int64_t across = (static_cast<int64_t>(sizes.d_ff) + columns - 1) / columns;
  if (sizes.rows > most || sizes.d_model > most || sizes.d_ff > most || down * across > most) {
    throw std::runtime_error("too large: " + std::to_string(down * across) + " tiles of " + std::to_string(sizes.rows) +
                             " rows, d_model " + std::to_string(sizes.d_model) + " and d_ff " +
                             std::to_string(sizes.d_ff) + ", at most " + std::to_string(most) + " of each");
  }
  return {static_cast<int32_t>(down), static_cast<int32_t>(across), static_cast<int32_t>(down * across)};
}

// Calls function(kind) with the kind of kernel that runs the job: a KIND<element, gated>.
template <template <class, bool> class KIND, class Function>
void with_feed_forward_kind(const FeedForwardSizes& sizes, bool gated, Function function) {
  auto with_element = [&](auto element) {
    using Element = decltype(element);
    if (gated) return function(KIND<Element, true>{});
    return function(KIND<Element, false>{});
  };
  if (sizes.dtype == Dtype::bfloat16) return with_element(Bfloat16{});
  if (sizes.dtype == Dtype::float16) return with_element(Float16{});
  throw std::runtime_error("dtype code " + std::to_string(static_cast<int>(sizes.dtype)) + " is not one of 1, 2");
}

}  // namespace undivided::cuda
