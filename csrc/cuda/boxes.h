// A tensor as the copy engine sees it, and the box that it copies at a time. All elements have 16 bits.
#pragma once

#include <cstdint>

#include "tile_layout.cuh"

namespace undivided::cuda {

// Sizes in elements, strides in bytes; the dimensions are (column, head, row, batch row).
struct Boxes {
  void* data;
  uint64_t size[4], stride[4];
  uint32_t box[4];
};

// Of a matrix, whose rows begin `stride` elements apart: 64 columns by `height` rows.
inline Boxes boxes_of_matrix(const void* data, int64_t stride, int64_t rows, int64_t columns, uint32_t height) {
  const auto bytes = static_cast<uint64_t>(2 * stride);
  return {const_cast<void*>(data),
          {static_cast<uint64_t>(columns), 1, static_cast<uint64_t>(rows), 1},
          {2, 16, bytes, 16},  // of a dimension of one element the stride is never used
          {kPanel, 1, height, 1}};
}

}  // namespace undivided::cuda
