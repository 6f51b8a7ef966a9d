// The product of a tile: the warp that loads, and the warpgroups that multiply.
#pragma once

#include "product_block.cuh"
#include "wgmma.cuh"

namespace undivided::cuda {

// A product as the loading thread sees it.
struct Factors {
  const TensorMap *left, *right;
  const TensorMap* second;     // the right factor of the second half, where the kind is a PAIR
  const unsigned char* bias;   // (columns,), of the first half, or null
  const TensorMap* soon[2];    // what finishing a tile will read, (rows, columns); or null
  int32_t depth, columns;
};

// ---- the loading warp: one thread of it ----

template <class K>
DEVICE void load_right(unsigned char* to, const Factors& factors, uint64_t* full, int column, int k) {
  if constexpr (K::ALONG_ROWS) {
    constexpr int HALF = kProductN / 2;
    load_box(to, factors.right, full, k, 0, column, 0);
    load_box(to + panel_bytes(HALF), K::PAIR ? factors.second : factors.right, full, k, 0,
             K::PAIR ? column : column + HALF, 0);
  } else {
#pragma unroll
    for (int panel = 0; panel < kProductN / kPanel; ++panel) {
      load_box(to + panel * panel_bytes(kProductK), factors.right, full, column + panel * kPanel, 0, k, 0);
    }
  }
}

template <class K>
DEVICE void load_tiles(ProductShared& shared, const Factors& factors, const ProductTiles& tiles) {
  PlaceOf<kProductStages> place;
  for (int index = block_index(); index < tiles.count; index += grid_size()) {
    const ProductTile tile = product_tile(tiles, index);
    const int row = tile.row * kProductM, column = tile.column * K::COLUMNS;
    for (const TensorMap* map : factors.soon) {
      for (int n = 0; map != nullptr && n < K::COLUMNS; n += kPanel) prefetch_box(map, column + n, 0, row, 0);
    }
    const int inside = factors.columns - column < K::COLUMNS ? factors.columns - column : K::COLUMNS;
    for (int k = 0; k < factors.depth; k += kProductK) {
      uint64_t* full = &shared.full[place.stage];
      const uint32_t extra = k == 0 && factors.bias != nullptr ? static_cast<uint32_t>(inside) * 2 : 0;
      barrier_wait(&shared.empty[place.stage], place.parity ^ 1);
      barrier_arrive_and_expect(full, kLeftBytes + kRightBytes + extra);
      load_box(shared.left[place.stage], factors.left, full, k, 0, row, 0);
      load_right<K>(shared.right[place.stage], factors, full, column, k);
      if (extra != 0) load_run(shared.bias[place.stage], factors.bias + 2 * static_cast<int64_t>(column), full, extra);
      place.advance();
    }
  }
}

// ---- the multiplying warpgroups ----

// Of a thread: [64, 128] each, the left and the right half of a tile's columns.
struct Sums {
  float half[2][kProductN / 4];
};

DEVICE void keep_sums(Sums& sums) {
  keep(sums.half[0]);
  keep(sums.half[1]);
}

// The sums begin with the bias of their columns, or with 0; in a PAIR the second half has no bias.
template <class K>
DEVICE void begin_sums(Sums& sums, const unsigned char* bias, int thread) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kProductN / 4; i += 4) {
      const int column = half * kProductN / 2 + fragment_column(thread) + i / 4 * 8;
      float low = 0.0F, high = 0.0F;
      if (bias != nullptr && !(K::PAIR && half == 1)) {
        unpack<typename K::Element>(*reinterpret_cast<const uint32_t*>(bias + 2 * column), low, high);
      }
      sums.half[half][i] = sums.half[half][i + 2] = low;
      sums.half[half][i + 1] = sums.half[half][i + 3] = high;
    }
  }
  keep_sums(sums);
}

// Starts sums [64, 256] += left [64, 64] right [64, 256].
template <class K>
DEVICE void start_step(Sums& sums, const unsigned char* left, const unsigned char* right) {
  using Element = typename K::Element;
  const uint32_t rows = shared_address(left), columns = shared_address(right);
  products_begin();
#pragma unroll
  for (int k = 0; k < kProductK; k += 16) {
    const uint64_t a = summed_along_rows(rows, kProductM, k);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t b = columns + half * kRightBytes / 2;
      if constexpr (K::ALONG_ROWS) {
        multiply_rows<Element>(sums.half[half], a, summed_along_rows(b, kProductN / 2, k), true);
      } else {
        multiply_plain<Element>(sums.half[half], a, summed_along_columns(b, kProductK, k), true);
      }
    }
  }
  products_commit();
}

// Leaves the sums in shared memory, [64, 256], where `swizzled` says. (The rows of a thread have one swizzle: written
// so, that is eight addresses instead of 64.)
template <class Element>
DEVICE void hand_over(unsigned char* to, const Sums& sums, int thread) {
  const int row = fragment_row(thread);
  unsigned char* line = to + row * kRowBytes + fragment_column(thread) * 2;
#pragma unroll
  for (int chunk = 0; chunk < kPanel / 8; ++chunk) {
    unsigned char* place = line + (chunk ^ row % 8) * 16;
#pragma unroll
    for (int panel = 0; panel < kProductN / kPanel; ++panel) {
      const float* four = sums.half[panel / 2] + panel % 2 * (kPanel / 2) + chunk * 4;
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const uint32_t at = panel * panel_bytes(kGroupRows) + lower * 8 * kRowBytes;
        *reinterpret_cast<uint32_t*>(place + at) = packed<Element>(four[2 * lower], four[2 * lower + 1]);
      }
    }
  }
}

// The second warpgroup begins a step after the first one, and stays behind: while one hands over a tile, the tensor
// cores work for the other.
template <class K>
DEVICE void multiply_tiles(ProductShared& shared, const ProductTiles& tiles, int depth, bool has_bias, int group,
                           int thread) {
  PlaceOf<kProductStages> place;
  PlaceOf<1> handed;
  bool alone = group == 0;
  if (!alone) named_sync(kSecondBegins, 2 * kGroup);
  auto multiplied = [&](int stage) {
    release(&shared.empty[stage], thread);
    if (alone) named_arrive(kSecondBegins, 2 * kGroup);
    alone = false;
  };
  for (int index = block_index(); index < tiles.count; index += grid_size()) {
    Sums sums;
    int before = -1;  // the stage of the step before, which is being multiplied
    if (has_bias) barrier_wait(&shared.full[place.stage], place.parity);
    begin_sums<K>(sums, has_bias ? shared.bias[place.stage] : nullptr, thread);
    for (int k = 0; k < depth; k += kProductK) {
      const unsigned char* left = shared.left[place.stage] + group * kGroupRows * kRowBytes;
      barrier_wait(&shared.full[place.stage], place.parity);
      start_step<K>(sums, left, shared.right[place.stage]);
      if (before >= 0) {
        products_wait<1>();
        multiplied(before);
      }
      before = place.stage;
      place.advance();
    }
    products_wait<0>();
    keep_sums(sums);
    multiplied(before);
    barrier_wait(&shared.handed_empty[group], handed.parity ^ 1);
    hand_over<typename K::Element>(shared.handed[group], sums, thread);
    release(&shared.handed_full[group], thread);
    handed.advance();
  }
}

}  // namespace undivided::cuda
