// Where the gradient of a tile's scores goes beside the products: to a dense bias, whose shared dimensions have
// stride 0, and to the sums by distance of a relative bias.
#pragma once

#include "attention_scores.h"

namespace undivided::UNDIVIDED_VARIANT {

// kRows rows are differentiated at a time; each has diagonals of its own, so that none waits for another's stores.
// kWidth is at least the number of rows and columns of a tile together, and kLanes.
template <int kRows, int kWidth>
struct BiasGradient {
  float* diagonals = nullptr;  // (kRows, kWidth): sums by column minus row, the least first
  bool by_distance = false;
  float* dense = nullptr;  // element (0, 0) of the tile
  int64_t dense_m = 0, dense_n = 0;

  void start(const AttentionBackward& job, const Tile& tile, int64_t chunk) {
    by_distance = job.distance_sums != nullptr;
    if (by_distance) std::memset(diagonals, 0, kRows * kWidth * sizeof(float));
    const Plane& plane = job.dbias;
    if (plane.data == nullptr) return;
    dense_m = plane.m;
    dense_n = plane.n;
    dense = static_cast<float*>(plane.data) + chunk * job.dbias_chunk + tile.sequence.b * plane.b + tile.h * plane.h +
            tile.i0 * plane.m + tile.n0 * plane.n;
  }

  UNDIVIDED_INLINE void add(const Tile& tile, int r, int c, Vec gradient) {
    if (by_distance) {
      float* at = diagonals + r % kRows * kWidth + c - r + tile.rows - 1;
      store(at, load(at) + gradient);
    }
    if (dense == nullptr) return;
    float* at = dense + r * dense_m;
    if (dense_n == 0) {
      *at += sum(gradient);
      return;
    }
    at += c;
    const int left = tile.keys - c;
    if (left >= kLanes) {
      store(at, load(at) + gradient);
    } else if (left > 0) {
      store_part(at, load_part(at, left) + gradient, left);
    }
  }

  // Adds the tile's diagonals to the sums by distance.
  void finish(const AttentionBackward& job, const Tile& tile, int64_t chunk) {
    if (!by_distance) return;
    const AttentionCall& call = *tile.call;
    const int64_t part = (chunk * call.batch + tile.sequence.b) * call.nheads + tile.h;
    float* sums = job.distance_sums + part * (2 * call.span + 1) + call.span;
    const int64_t first = tile.n0 - tile.i0 - tile.sequence.at - (tile.rows - 1);
    for (int x = 0; x < kWidth; ++x) {
      float total = diagonals[x];
      for (int row = 1; row < kRows; ++row) total += diagonals[row * kWidth + x];
      const int64_t d = first + x;
      sums[d < -call.span ? -call.span : d > call.span ? call.span : d] += total;
    }
  }
};

}  // namespace undivided::UNDIVIDED_VARIANT
