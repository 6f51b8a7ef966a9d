// The gradient of a relative bias: sums of the scores' gradients by distance, key position minus query position.
//
// Three warps that would else do nothing read each tile of gradients where the tensor cores read it for dq. In a tile near
// the diagonal a thread sums whole diagonals; one that lies beyond the span is one sum. Every block of keys leaves its own
// sums, in a fixed order.
#pragma once

namespace undivided::cuda {

// The sum of this thread's share of a tile.
template <class K>
DEVICE float sum_of_share(const unsigned char* ds, int thread) {
  float sum = 0.0F;
#pragma unroll 2
  for (int n = thread; n < kTileN * K::TILE_M / 8; n += kSumming * 32) {
    const Chunk chunk = reinterpret_cast<const Chunk*>(ds)[n];
#pragma unroll
    for (uint32_t word : chunk.words) sum += sum_of_halves<typename K::Element>(word);
  }
  return sum;
}

// The sum of the elements whose row is `offset` more than their column, of the first rows and columns of a tile.
template <class K>
DEVICE float sum_of_diagonal(const unsigned char* ds, int offset, int rows, int columns) {
  const int begin = offset > 0 ? offset : 0, end = offset + columns < rows ? offset + columns : rows;
  float sum = 0.0F;
#pragma unroll 4
  for (int row = begin; row < end; ++row) {
    sum += widened_half<typename K::Element>(
        *reinterpret_cast<const uint16_t*>(ds + swizzled(kTileN, row, row - offset)));
  }
  return sum;
}

template <class K>
DEVICE void sum_by_distance(BackwardShared<K>& shared, const AttentionBackward& job, const Tile& tile, int blocks) {
  constexpr int THREADS = kSumming * 32;
  const AttentionForward& call = job.call;
  const Sequence at = sequence_of(call, tile.b);
  const int n = tile.block * kTileN, members = call.nheads / call.nheads_kv, span = call.span;
  const Range visited = query_tiles<K::TILE_M, kTileN>(at, window_of(call), n).visited;
  const int count = visited.end - visited.begin, thread = thread_index() - 32;
  const int rows = at.lenk - n < kTileN ? at.lenk - n : kTileN;
  Place place;
  for (int member = 0; member < members; ++member) {
    float before = 0.0F, after = 0.0F;  // at least span below 0, above 0
    for (int t = thread; t <= 2 * span; t += THREADS) shared.by_distance[t] = 0.0F;
    named_sync(kSums, THREADS);
    for (int step = 0; step < count; ++step, place.advance()) {
      const int m = tile_of_step(visited, call.has_right, tile.block, step) * K::TILE_M;
      const int first = static_cast<int>(n - m - at.shift);  // the distance of the first row and column
      barrier_wait(&shared.ds_full[place.stage], place.parity);
      const unsigned char* ds = shared.ds[place.stage];
      if (first + kTileN - 1 <= -span) {
        before += sum_of_share<K>(ds, thread);
      } else if (first - (K::TILE_M - 1) >= span) {
        after += sum_of_share<K>(ds, thread);
      } else {
        const int columns = at.lenq - m < K::TILE_M ? at.lenq - m : K::TILE_M;  // beyond the sequence all is 0
        for (int offset = thread - (columns - 1); offset < rows; offset += THREADS) {
          const float sum = sum_of_diagonal<K>(ds, offset, rows, columns);
          const int distance = first + offset;
          if (distance <= -span) {
            before += sum;
          } else if (distance >= span) {
            after += sum;
          } else {
            shared.by_distance[distance + span] += sum;
          }
        }
        named_sync(kSums, THREADS);  // in the next tile another thread has the distance
      }
      release(&shared.ds_empty[place.stage], thread);
    }
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      before += shuffle_xor(before, lanes);
      after += shuffle_xor(after, lanes);
    }
    if (thread % 32 == 0) {
      shared.ends[thread / 32 * 2] = before;
      shared.ends[thread / 32 * 2 + 1] = after;
    }
    named_sync(kSums, THREADS);
    const int64_t row = (static_cast<int64_t>(tile.b) * call.nheads + tile.h * members + member) * blocks + tile.block;
    float* to = job.by_distance + row * (2 * span + 1);
    for (int t = thread; t <= 2 * span; t += THREADS) {
      float sum = shared.by_distance[t];
      if (t == 0 || t == 2 * span) {
        for (int warp = 0; warp < kSumming; ++warp) sum += shared.ends[warp * 2 + (t == 0 ? 0 : 1)];
      }
      to[t] = sum;
    }
    named_sync(kSums, THREADS);
  }
}

}  // namespace undivided::cuda
