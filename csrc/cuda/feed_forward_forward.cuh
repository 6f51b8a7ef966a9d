// The feed-forward network's forward up to its hidden layer, on the device: a = act(x w_in^T + b_in) [x w_gate^T].
#pragma once

#include "activation.cuh"
#include "feed_forward.h"
#include "product.cuh"

namespace undivided::cuda {

template <class ELEMENT, bool GATED>
using FeedForwardKind = ProductKind<ELEMENT, true, GATED>;

// Half a tile, 64 rows: each warp finishes a row at a time, or two of a PAIR, and each thread has 8 columns.
template <class K, class Act>
DEVICE void finish_forward_rows(const unsigned char* handed, const FeedForwardForward& job, int64_t first,
                                int64_t column, int warp, int lane) {
  using Element = typename K::Element;
  constexpr int CHUNKS = K::COLUMNS / 8, TOGETHER = 32 / CHUNKS, BATCH = K::PAIR ? 2 : 4;
  constexpr int STEP = kFinishingWarps * TOGETHER;
  const int own = lane % CHUNKS * 8;
  const int64_t left = job.sizes.rows - first, n = column + own;
  const int rows = n >= job.sizes.d_ff ? 0 : static_cast<int>(left < kGroupRows ? left : kGroupRows);
  for (int begin = warp * TOGETHER + lane / CHUNKS; begin < rows; begin += BATCH * STEP) {
    Chunk h[BATCH], g[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int row = begin + i * STEP;
      if (row >= rows) continue;
      h[i] = *reinterpret_cast<const Chunk*>(handed + swizzled(kGroupRows, row, own));
      if (K::PAIR) g[i] = *reinterpret_cast<const Chunk*>(handed + swizzled(kGroupRows, row, own + K::COLUMNS));
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int row = begin + i * STEP;
      if (row >= rows) continue;
      const int64_t at = 2 * ((first + row) * job.sizes.d_ff + n);
      if (job.h != nullptr) store_once(static_cast<unsigned char*>(job.h) + at, h[i].words);
      if (K::PAIR && job.g != nullptr) store_once(static_cast<unsigned char*>(job.g) + at, g[i].words);
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        float low, high;
        unpack<Element>(h[i].words[word], low, high);
        low = Act::value(low);
        high = Act::value(high);
        if (K::PAIR) {
          float gates[2];
          unpack<Element>(g[i].words[word], gates[0], gates[1]);
          low *= gates[0];
          high *= gates[1];
        }
        h[i].words[word] = packed<Element>(low, high);
      }
      store_once(static_cast<unsigned char*>(job.a) + at, h[i].words);
    }
  }
}

template <class K>
DEVICE void finish_forward(ProductShared& shared, const FeedForwardForward& job, const ProductTiles& tiles, int warp,
                           int lane) {
  PlaceOf<1> handed;
  with_activation(job.sizes.activation, [&](auto act) {
    for (int index = block_index(); index < tiles.count; index += grid_size()) {
      const ProductTile tile = product_tile(tiles, index);
      const int64_t row = tile.row * static_cast<int64_t>(kProductM);
      const int64_t column = tile.column * static_cast<int64_t>(K::COLUMNS);
      for (int half = 0; half < 2; ++half) {
        barrier_wait(&shared.handed_full[half], handed.parity);
        finish_forward_rows<K, decltype(act)>(shared.handed[half], job, row + half * kGroupRows, column, warp, lane);
        release(&shared.handed_empty[half], lane);
      }
      handed.advance();
    }
  });
}

template <class K>
KERNEL(kProductThreads)
feed_forward_forward_kernel(const GRID_CONSTANT TensorMap x, const GRID_CONSTANT TensorMap w_in,
                            const GRID_CONSTANT TensorMap w_gate, const GRID_CONSTANT FeedForwardForward job,
                            const GRID_CONSTANT ProductTiles tiles) {
  auto& shared = *static_cast<ProductShared*>(shared_memory());
  if (thread_index() == 0) {
    initialise(shared);
    for (const TensorMap* map : {&x, &w_in, &w_gate}) prefetch(map);
  }
  block_sync();
  const Part part = part_of(warp_uniform(thread_index() / 32));
  if (part.role == Role::multiply) {
    claim_registers<kMultiplyingRegisters>();
    multiply_tiles<K>(shared, tiles, job.sizes.d_model, job.b_in != nullptr, part.number, thread_index() % kGroup);
    return;
  }
  release_registers<kOtherRegisters>();
  if (part.role == Role::finish) {
    finish_forward<K>(shared, job, tiles, part.number, thread_index() % 32);
  } else if (thread_index() == 0) {
    const Factors factors{&x, &w_in, &w_gate, static_cast<const unsigned char*>(job.b_in), {nullptr, nullptr},
                          job.sizes.d_model, job.sizes.d_ff};
    load_tiles<K>(shared, factors, tiles);
  }
}

}  // namespace undivided::cuda
