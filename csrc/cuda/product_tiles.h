// The order of the tiles of a product, of which each multiprocessor takes every so manieth. Plain arithmetic.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace undivided::cuda {

// Rows of tiles that go together, down first: the 132 multiprocessors of a GPU then share some 16 rows and 8 columns
// of tiles, close to the least that they can read from the L2 cache into it.
constexpr int32_t kTileGroup = 16;

struct ProductTiles {
  int32_t down, across;  // tiles
  int32_t count;
};

struct ProductTile {
  int32_t row, column;  // in tiles
};

HOST_DEVICE ProductTile product_tile(const ProductTiles& tiles, int32_t index) {
  const int32_t first = index / (kTileGroup * tiles.across) * kTileGroup;
  const int32_t left = tiles.down - first, height = left < kTileGroup ? left : kTileGroup;
  const int32_t within = index - first * tiles.across;
  return {first + within % height, within / height};
}

}  // namespace undivided::cuda
