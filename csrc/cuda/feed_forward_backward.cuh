// The feed-forward network's backward down to its hidden layer, on the device: da = dout w_out and, with act and its
// slope made again from h, dh = da [g] act'(h), dg = da act(h), a = act(h) [g], and sums of dh over blocks of 64 rows.
#pragma once

#include "activation.cuh"
#include "feed_forward.h"
#include "product.cuh"

namespace undivided::cuda {

template <class ELEMENT, bool GATED_>
struct FeedForwardBackwardKind : ProductKind<ELEMENT, false, false> {
  static constexpr bool GATED = GATED_;
};

// What a thread has of a row: 8 columns.
struct HiddenChunk {
  Chunk h, g;
};

// h (and g) become dh and dg, da becomes a; totals [8] += dh.
template <class K, class Act>
DEVICE void differentiate(Chunk& da, HiddenChunk& at, float (&totals)[8]) {
  using Element = typename K::Element;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    float h[2], g[2] = {1.0F, 1.0F}, grad[2], a[2], dg[2];
    unpack<Element>(at.h.words[word], h[0], h[1]);
    if (K::GATED) unpack<Element>(at.g.words[word], g[0], g[1]);
    unpack<Element>(da.words[word], grad[0], grad[1]);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const Activated act = Act::both(h[e]);
      a[e] = act.value;
      h[e] = grad[e] * act.slope;
      if (K::GATED) {
        dg[e] = grad[e] * act.value;
        a[e] *= g[e];
        h[e] *= g[e];
      }
      totals[2 * word + e] += h[e];
    }
    at.h.words[word] = packed<Element>(h[0], h[1]);
    if (K::GATED) at.g.words[word] = packed<Element>(dg[0], dg[1]);
    da.words[word] = packed<Element>(a[0], a[1]);
  }
}

// Half a tile, 64 rows: each warp finishes a row at a time, each thread has 8 columns. What is read from global memory
// is on its way before the sums are waited for. rows: that are there. totals [8]: over the warp's rows.
template <class K, class Act>
DEVICE void finish_backward_rows(const unsigned char* handed, uint64_t* handed_full, uint32_t parity,
                                 const FeedForwardBackward& job, int64_t first, int rows, int64_t n, int warp, int lane,
                                 float (&totals)[8]) {
  constexpr int BATCH = K::GATED ? 2 : 4;
  auto place = [&](const void* base, int row) {
    return static_cast<unsigned char*>(const_cast<void*>(base)) + 2 * ((first + row) * job.sizes.d_ff + n);
  };
  bool here = false;
  for (int begin = warp; begin < kGroupRows; begin += BATCH * kFinishingWarps) {
    HiddenChunk hidden[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int row = begin + i * kFinishingWarps;
      if (row >= rows) continue;
      load_once(hidden[i].h.words, place(job.h, row));
      if (K::GATED) load_once(hidden[i].g.words, place(job.g, row));
    }
    if (!here) barrier_wait(handed_full, parity);
    here = true;
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int row = begin + i * kFinishingWarps;
      if (row >= rows) continue;
      Chunk da = *reinterpret_cast<const Chunk*>(handed + swizzled(kGroupRows, row, lane * 8));
      differentiate<K, Act>(da, hidden[i], totals);
      store_once(place(job.dh, row), hidden[i].h.words);
      if (K::GATED) store_once(place(job.dg, row), hidden[i].g.words);
      if (job.a != nullptr) store_once(place(job.a, row), da.words);
    }
  }
}

// The sums of a block of 64 rows, of what the warps have found, in their order. left: columns that are there.
DEVICE void store_sums(float (&sums)[kFinishingWarps][kProductN], const float (&totals)[8], float* to, int64_t left,
                       int warp, int lane) {
  Four* own = reinterpret_cast<Four*>(&sums[warp][lane * 8]);
  own[0] = {{totals[0], totals[1], totals[2], totals[3]}};
  own[1] = {{totals[4], totals[5], totals[6], totals[7]}};
  named_sync(kAmongFinishing, kFinishing);
  for (int column = warp * 32 + lane; column < kProductN && column < left; column += kFinishing) {
    float total = 0.0F;
#pragma unroll
    for (int each = 0; each < kFinishingWarps; ++each) total += sums[each][column];
    to[column] = total;
  }
  named_sync(kAmongFinishing, kFinishing);
}

template <class K>
DEVICE void finish_backward(ProductShared& shared, const FeedForwardBackward& job, const ProductTiles& tiles, int warp,
                            int lane) {
  const FeedForwardSizes& sizes = job.sizes;
  PlaceOf<1> handed;
  with_activation(sizes.activation, [&](auto act) {
    for (int index = block_index(); index < tiles.count; index += grid_size()) {
      const ProductTile tile = product_tile(tiles, index);
      const int64_t column = tile.column * static_cast<int64_t>(kProductN), n = column + lane * 8;
      for (int half = 0; half < 2; ++half) {
        const int64_t first = tile.row * static_cast<int64_t>(kProductM) + half * kGroupRows;
        const int64_t left = sizes.rows - first;
        const int rows = n >= sizes.d_ff ? 0 : static_cast<int>(left < kGroupRows ? left : kGroupRows);
        float totals[8] = {};
        finish_backward_rows<K, decltype(act)>(shared.handed[half], &shared.handed_full[half], handed.parity, job,
                                               first, rows, n, warp, lane, totals);
        release(&shared.handed_empty[half], lane);
        if (job.sums != nullptr && left > 0) {
          float* to = job.sums + first / kGroupRows * sizes.d_ff + column;
          store_sums(shared.sums, totals, to, sizes.d_ff - column, warp, lane);
        }
      }
      handed.advance();
    }
  });
}

template <class K>
KERNEL(kProductThreads)
feed_forward_backward_kernel(const GRID_CONSTANT TensorMap dout, const GRID_CONSTANT TensorMap w_out,
                             const GRID_CONSTANT TensorMap h, const GRID_CONSTANT TensorMap g,
                             const GRID_CONSTANT FeedForwardBackward job, const GRID_CONSTANT ProductTiles tiles) {
  auto& shared = *static_cast<ProductShared*>(shared_memory());
  if (thread_index() == 0) {
    initialise(shared);
    for (const TensorMap* map : {&dout, &w_out, &h, &g}) prefetch(map);
  }
  block_sync();
  const Part part = part_of(warp_uniform(thread_index() / 32));
  if (part.role == Role::multiply) {
    claim_registers<kMultiplyingRegisters>();
    multiply_tiles<K>(shared, tiles, job.sizes.d_model, false, part.number, thread_index() % kGroup);
    return;
  }
  release_registers<kOtherRegisters>();
  if (part.role == Role::finish) {
    finish_backward<K>(shared, job, tiles, part.number, thread_index() % 32);
  } else if (thread_index() == 0) {
    const Factors factors{&dout, &w_out, nullptr, nullptr, {&h, K::GATED ? &g : nullptr},
                          job.sizes.d_model, job.sizes.d_ff};
    load_tiles<K>(shared, factors, tiles);
  }
}

}  // namespace undivided::cuda
