// The attention backward of a Hopper GPU, on the device: five products for each pair of tiles.
//
// A block owns 128 keys of one head and goes through the queries that see them, as in FlashAttention-3 (Shah et al.
// 2024). Two warpgroups have 64 of the keys each. Scores are made with keys as rows, so that probabilities and their
// gradients feed the sums of dv and dk straight from registers. The gradients also go to shared memory: dq needs those of
// both warpgroups, and is added to float32 sums in global memory, to which other blocks add theirs at the same time.
// In which order they do is left to chance, and so are the last bits of dq.
#pragma once

#include "attention_backward_rows.cuh"
#include "attention_block.cuh"
#include "hidden_values.cuh"
#include "scheduler.cuh"
#include "scores.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace undivided::cuda {

// The loading warpgroup has one warp that loads; the others sum gradients by distance, see distances.cuh.
constexpr int kSumming = 3;
constexpr int kMostSpan = 1024;  // of a relative bias with a gradient

// TABLE: the gradient of a relative bias is wanted.
template <class ELEMENT, int HEAD_DIM_, bool PLAIN_, bool TABLE_ = false>
struct BackwardKind : Team<2> {
  static constexpr bool TABLE = TABLE_;
  // Those who sum that gradient need more than those who load.
  static constexpr int LOADING_REGISTERS = TABLE ? 40 : 24, COMPUTING_REGISTERS = TABLE ? 232 : 240;
  using Element = ELEMENT;
  static constexpr int HEAD_DIM = HEAD_DIM_;
  static constexpr bool PLAIN = PLAIN_;
  // Queries of a tile. The sums of dk and dv take 2 * HEAD_DIM / 2 registers of a thread: what is left decides.
  static constexpr int TILE_M = HEAD_DIM == 64 ? 128 : 64;
  static constexpr uint32_t KEY_BYTES = kTileN * HEAD_DIM * 2, QUERY_BYTES = TILE_M * HEAD_DIM * 2;
};

template <class K>
struct alignas(kGroupBytes) BackwardShared {
  unsigned char k[K::KEY_BYTES], v[K::KEY_BYTES];  // and dk, dv, on their way out
  unsigned char q[kStages][K::QUERY_BYTES], dout[kStages][K::QUERY_BYTES];
  unsigned char ds[kStages][kTileN * K::TILE_M * 2];  // gradients of the scores: keys by queries
  alignas(16) float dq[K::GROUPS][kGroupRows * kPanel];  // on its way out
  alignas(16) float lse[kStages][K::TILE_M], delta[kStages][K::TILE_M];
  uint64_t keys_full, q_full[kStages], q_empty[kStages], dout_full[kStages], dout_empty[kStages];
  uint64_t ds_full[kStages], ds_empty[kStages];  // only for those who sum by distance
  float by_distance[K::TABLE ? 2 * kMostSpan + 1 : 1], ends[K::TABLE ? 2 * kSumming : 1];
  uint8_t bad[kTileN];  // see hidden_values.cuh
};

// The tile of queries of one step. Without a right bound all blocks of a head would begin with the same queries, and add
// to the same sums: each begins elsewhere.
DEVICE int tile_of_step(const Range& visited, bool has_right, int block, int step) {
  const int count = visited.end - visited.begin;
  return visited.begin + (has_right ? step : (step + block) % count);
}

// ---- the loading warpgroup: one thread of it ----

template <class K>
DEVICE void load_backward(BackwardShared<K>& shared, const TensorMap* q, const TensorMap* k, const TensorMap* v,
                          const TensorMap* dout, const AttentionBackward& job, const Tile& tile) {
  const AttentionForward& call = job.call;
  const Sequence at = sequence_of(call, tile.b);
  const int n = tile.block * kTileN, group = call.nheads / call.nheads_kv;
  const Range visited = query_tiles<K::TILE_M, kTileN>(at, window_of(call), n).visited;
  const int count = visited.end - visited.begin;
  if (count <= 0) return;
  auto boxes = [&](unsigned char* to, const TensorMap* map, uint64_t* full, const Rows& rows, int height, int h,
                   int64_t first) {
#pragma unroll
    for (int panel = 0; panel < K::HEAD_DIM / kPanel; ++panel) {
      load_box(to + panel * panel_bytes(height), map, full, panel * kPanel, rows.h == 0 ? 0 : h,
               static_cast<int>(first), rows.b == 0 ? 0 : tile.b);
    }
  };
  barrier_arrive_and_expect(&shared.keys_full, 2 * K::KEY_BYTES);
  boxes(shared.k, k, &shared.keys_full, call.k, kTileN, tile.h, at.first_k + n);
  boxes(shared.v, v, &shared.keys_full, call.v, kTileN, tile.h, at.first_k + n);
  Place place;
  for (int member = 0; member < group; ++member) {
    const int h = tile.h * group + member;
    const int64_t padded = padded_row(call, job, tile.b, h, at);
    for (int step = 0; step < count; ++step) {
      const int m = tile_of_step(visited, call.has_right, tile.block, step) * K::TILE_M;
      uint64_t *q_full = &shared.q_full[place.stage], *dout_full = &shared.dout_full[place.stage];
      barrier_wait(&shared.q_empty[place.stage], place.parity ^ 1);
      barrier_arrive_and_expect(q_full, K::QUERY_BYTES + K::TILE_M * 4);
      boxes(shared.q[place.stage], q, q_full, call.q, K::TILE_M, h, at.first_q + m);
      load_run(shared.lse[place.stage], job.lse2 + padded + m, q_full, K::TILE_M * 4);
      barrier_wait(&shared.dout_empty[place.stage], place.parity ^ 1);
      barrier_arrive_and_expect(dout_full, K::QUERY_BYTES + K::TILE_M * 4);
      boxes(shared.dout[place.stage], dout, dout_full, job.dout, K::TILE_M, h, at.first_q + m);
      load_run(shared.delta[place.stage], job.delta + padded + m, dout_full, K::TILE_M * 4);
      place.advance();
    }
  }
}

// ---- the computing warpgroups ----

// Starts s [64, TILE_M] = keys queries^T. keys: the first of the warpgroup's rows in a tile of 128.
template <class K>
DEVICE void start_rows(float (&s)[K::TILE_M / 2], const unsigned char* keys, const unsigned char* queries) {
  const uint32_t a = shared_address(keys), b = shared_address(queries);
  keep(s);
  products_begin();
#pragma unroll
  for (int d = 0; d < K::HEAD_DIM; d += 16) {
    multiply_rows<typename K::Element>(s, summed_along_rows(a, kTileN, d), summed_along_rows(b, K::TILE_M, d), d > 0);
  }
  products_commit();
}

// Starts acc [64, HEAD_DIM] += weights [64, TILE_M] rows.
template <class K>
DEVICE void start_sums(float (&acc)[K::HEAD_DIM / 2], uint32_t (&weights)[K::TILE_M / 4], const unsigned char* rows) {
  const uint32_t b = shared_address(rows);
  keep(acc);
  keep(weights);
  products_begin();
#pragma unroll
  for (int i = 0; i < K::TILE_M; i += 16) {
    multiply_columns<typename K::Element>(acc, weights + i / 4, summed_along_columns(b, K::TILE_M, i));
  }
  products_commit();
}

// Starts a warpgroup's part of dq, [64, 64]: of one half of the queries, or of the columns.
template <class K>
DEVICE void start_dq(float (&dq)[kPanel / 2], const unsigned char* ds, const unsigned char* keys, int group) {
  const uint32_t part = static_cast<uint32_t>(group) * panel_bytes(kTileN);
  const uint32_t a = shared_address(ds) + (K::TILE_M == 128 ? part : 0);
  const uint32_t b = shared_address(keys) + (K::TILE_M == 128 ? 0 : part);
  keep(dq);
  products_begin();
#pragma unroll
  for (int j = 0; j < kTileN; j += 16) {
    multiply_turned<typename K::Element>(dq, summed_along_columns(a, kTileN, j), summed_along_columns(b, kTileN, j),
                                         j > 0);
  }
  products_commit();
}

// Adds a warpgroup's part of dq, which is there, to the sums in memory, by the copy engine. `from`: shared memory that the
// last addition no longer reads.
DEVICE void add_dq(float* to, float* from, float (&dq)[kPanel / 2], int group, int thread) {
  keep(dq);
#pragma unroll
  for (int n = 0; n < kPanel / 8; ++n) {
    *reinterpret_cast<Four*>(from + sum_place(n, thread)) = {{dq[4 * n], dq[4 * n + 1], dq[4 * n + 2], dq[4 * n + 3]}};
  }
  publish_to_engines();
  named_sync(kAmong + group, kGroup);
  if (thread == 0) add_run(to, from, kGroupRows * kPanel * 4);
}

// Sets the rows of a tile of queries that lie outside of the sequence to 0: 0 times what stands there must be 0.
template <class K>
DEVICE void clear_outside(unsigned char* tile, int inside, int thread) {
  constexpr int CHUNKS = K::HEAD_DIM / 8;
#pragma unroll 1
  for (int n = inside * CHUNKS + thread; n < K::TILE_M * CHUNKS; n += K::COMPUTING) {
    *reinterpret_cast<Chunk*>(tile + swizzled(K::TILE_M, n / CHUNKS, n % CHUNKS * 8)) = Chunk{};
  }
}

// Replaces what a key's query does not see. column: the query of element 0; seen: by the thread's two keys.
template <int COUNT>
DEVICE void replace_hidden(float (&s)[COUNT], const Range (&seen)[2], int column, float by) {
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
    const int i = column + n / 4 * 8 + n % 2;
    const Range& row = seen[n / 2 % 2];
    if (i < row.begin || i >= row.end) s[n] = by;
  }
}

// s becomes exp2(s * unit - lse2). lse2: of the queries, from element 0's on.
template <int COUNT>
DEVICE void to_probabilities(float (&s)[COUNT], const float* lse2, float unit) {
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    const Two of = *reinterpret_cast<const Two*>(lse2 + 2 * i);
#pragma unroll
    for (int e = 0; e < 4; ++e) s[i + e] = exp2_fast(s[i + e] * unit - of.values[e % 2]);
  }
}

// dp, gradients of the probabilities p, become those of the scores: p * (dp - delta).
template <int COUNT>
DEVICE void to_gradients(float (&dp)[COUNT], const float (&p)[COUNT], const float* delta) {
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    const Two of = *reinterpret_cast<const Two*>(delta + 2 * i);
#pragma unroll
    for (int e = 0; e < 4; ++e) dp[i + e] = p[i + e] * (dp[i + e] - of.values[e % 2]);
  }
}

// Writes a warpgroup's 64 rows of dk or dv through the tile of the keys.
template <class K>
DEVICE void store_keys(unsigned char* tile, const float (&acc)[K::HEAD_DIM / 2], float scale, const Rows& to, int b, int h,
                       int64_t first_row, int first, int rows, int group, int thread) {
  const int row = group * kGroupRows + fragment_row(thread), column = fragment_column(thread);
#pragma unroll
  for (int i = 0; i < K::HEAD_DIM / 2; i += 2) {
    const uint32_t at = swizzled(kTileN, row + i / 2 % 2 * 8, column + i / 4 * 8);
    *reinterpret_cast<uint32_t*>(tile + at) = packed<typename K::Element>(acc[i] * scale, acc[i + 1] * scale);
  }
  named_sync(kAmong + group, kGroup);
  constexpr int CHUNKS = K::HEAD_DIM / 8;
  unsigned char* out = static_cast<unsigned char*>(to.data) + 2 * (b * to.b + h * to.h);
#pragma unroll 4
  for (int n = thread; n < kGroupRows * CHUNKS; n += kGroup) {
    const int r = group * kGroupRows + n / CHUNKS, d = n % CHUNKS * 8;
    if (first + r >= rows) continue;
    const Chunk* chunk = reinterpret_cast<Chunk*>(tile + swizzled(kTileN, r, d));
    *reinterpret_cast<Chunk*>(out + 2 * ((first_row + first + r) * to.s + d)) = *chunk;
  }
}

template <class K>
DEVICE void compute_backward(BackwardShared<K>& shared, const AttentionBackward& job, const Tile& tile) {
  using Element = typename K::Element;
  constexpr int COUNT = K::TILE_M / 2;  // scores of a thread
  const AttentionForward& call = job.call;
  const int group = warp_uniform(thread_index() / kGroup) - 1, thread = thread_index() % kGroup;
  const Sequence at = sequence_of(call, tile.b);
  const Window window = window_of(call);
  const int n = tile.block * kTileN, members = call.nheads / call.nheads_kv;
  const Tiles tiles = query_tiles<K::TILE_M, kTileN>(at, window, n);
  const int count = tiles.visited.end - tiles.visited.begin;
  const int key = n + group * kGroupRows + fragment_row(thread), column = fragment_column(thread);
  float dk[K::HEAD_DIM / 2] = {}, dv[K::HEAD_DIM / 2] = {};
  if (count > 0) {
    Range seen[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) seen[half] = visible_queries(at, window, key + 8 * half);
    const float unit = K::PLAIN ? call.scale * kLog2e : 1.0F;
    barrier_wait(&shared.keys_full, 0);
    // A key that is not finite makes all scores NaN that see it, and counts as 0 in dq, where others do not see it.
    bool bad[2] = {false, false};
    bool any_bad = share_is_bad<Element, K::KEY_BYTES>(shared.k, thread, kGroup);
    any_bad = named_any(kAmong + group, kGroup, any_bad);
    if (any_bad) {
      named_sync(kTogether, K::COMPUTING);
      clear_bad_rows<Element, K::HEAD_DIM, kTileN>(shared.k, shared.bad, group * kGroup + thread);
      publish_to_engines();
      named_sync(kTogether, K::COMPUTING);
#pragma unroll
      for (int half = 0; half < 2; ++half) bad[half] = shared.bad[key - n + 8 * half] != 0;
    }
    const unsigned char* own_k = shared.k + group * kGroupRows * kRowBytes;
    const unsigned char* own_v = shared.v + group * kGroupRows * kRowBytes;
    Place place;
    for (int member = 0; member < members; ++member) {
      const int h = tile.h * members + member;
      const HeadBias bias = head_bias(call, tile.b, h);
      float* sums = job.sums + padded_row(call, job, tile.b, h, at) * K::HEAD_DIM;
      for (int step = 0; step < count; ++step, place.advance()) {
        const int index = tile_of_step(tiles.visited, call.has_right, tile.block, step), m = index * K::TILE_M;
        const bool masked = tiles.masked(index);
        unsigned char *q = shared.q[place.stage], *dout = shared.dout[place.stage], *ds = shared.ds[place.stage];
        float s[COUNT], dp[COUNT];
        barrier_wait(&shared.q_full[place.stage], place.parity);
        if (m + K::TILE_M > at.lenq) {
          barrier_wait(&shared.dout_full[place.stage], place.parity);
          clear_outside<K>(q, at.lenq - m, group * kGroup + thread);
          clear_outside<K>(dout, at.lenq - m, group * kGroup + thread);
          publish_to_engines();
          named_sync(kTogether, K::COMPUTING);
        }
        start_rows<K>(s, own_k, q);
        barrier_wait(&shared.dout_full[place.stage], place.parity);
        start_rows<K>(dp, own_v, dout);
        products_wait<1>();
        keep(s);
        if constexpr (!K::PLAIN) {
          transform<-1>(s, call, bias, at.shift, m + column, key, m, n + group * kGroupRows, kGroupRows);
        }
        if (any_bad) {
#pragma unroll
          for (int i = 0; i < COUNT; ++i) s[i] = bad[i / 2 % 2] ? __builtin_nanf("") : s[i];
        }
        if (masked) replace_hidden(s, seen, m + column, -kInfinity);
        to_probabilities(s, shared.lse[place.stage] + column, unit);
        products_wait<0>();
        keep(dp);
        to_gradients(dp, s, shared.delta[place.stage] + column);
        if (masked) replace_hidden(dp, seen, m + column, 0.0F);

        uint32_t p[COUNT / 2], gradients[COUNT / 2];
        pack_weights<Element>(s, p);
        start_sums<K>(dv, p, dout);
        pack_weights<Element>(dp, gradients);
        if constexpr (K::TABLE) barrier_wait(&shared.ds_empty[place.stage], place.parity ^ 1);
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i) {
          *reinterpret_cast<uint32_t*>(ds + swizzled(kTileN, key - n + i % 2 * 8, column + i / 2 * 8)) = gradients[i];
        }
        publish_to_engines();
        if constexpr (K::TABLE) release(&shared.ds_full[place.stage], thread);
        start_sums<K>(dk, gradients, q);
        if (thread == 0) runs_are_read();
        named_sync(kTogether, K::COMPUTING);  // both have written their gradients, and the last dq has been read
        float dq[kPanel / 2];
        start_dq<K>(dq, ds, shared.k, group);
        products_wait<1>();
        keep(dk);
        keep(dv);
        keep(p);
        keep(gradients);
        release(&shared.dout_empty[place.stage], thread);
        release(&shared.q_empty[place.stage], thread);
        products_wait<0>();
        // 64 rows of 64 columns: the tile's second rows, or its second columns.
        float* to = sums + static_cast<int64_t>(m) * K::HEAD_DIM + group * kGroupRows * kPanel;
        add_dq(to, shared.dq[group], dq, group, thread);
      }
    }
    if (thread == 0) runs_are_read();
    named_sync(kTogether, K::COMPUTING);  // nobody reads k any more
  }
  const int rows = call.cu_k != nullptr ? at.lenk : call.seqlen_k;
  if (n >= rows) return;
  store_keys<K>(shared.k, dk, call.scale, job.dk, tile.b, tile.h, at.first_k, n, rows, group, thread);
  store_keys<K>(shared.v, dv, 1.0F, job.dv, tile.b, tile.h, at.first_k, n, rows, group, thread);
}

}  // namespace undivided::cuda

#include "distances.cuh"

namespace undivided::cuda {

template <class K>
KERNEL(K::THREADS)
attention_backward_kernel(const GRID_CONSTANT TensorMap q, const GRID_CONSTANT TensorMap k,
                          const GRID_CONSTANT TensorMap v, const GRID_CONSTANT TensorMap dout,
                          const GRID_CONSTANT AttentionBackward job, const GRID_CONSTANT Schedule schedule) {
  auto& shared = *static_cast<BackwardShared<K>*>(shared_memory());
  if (thread_index() == 0) {
    require(shared_address(&shared) % kGroupBytes == 0);
    barrier_init(&shared.keys_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      for (uint64_t* full : {shared.q_full, shared.dout_full}) barrier_init(full + stage, 1);
      for (uint64_t* empty : {shared.q_empty, shared.dout_empty}) barrier_init(empty + stage, K::WARPS);
      barrier_init(shared.ds_full + stage, K::WARPS);
      barrier_init(shared.ds_empty + stage, kSumming);
    }
    barriers_are_initialised();
    for (const TensorMap* map : {&q, &k, &v, &dout}) prefetch(map);
  }
  block_sync();
  const Tile tile = tile_of(schedule, block_index());
  if (thread_index() < kGroup) {
    release_registers<K::LOADING_REGISTERS>();
    if (thread_index() == 0) load_backward(shared, &q, &k, &v, &dout, job, tile);
    if constexpr (K::TABLE) {
      if (thread_index() >= 32) sum_by_distance(shared, job, tile, schedule.blocks);
    }
  } else {
    claim_registers<K::COMPUTING_REGISTERS>();
    compute_backward(shared, job, tile);
  }
}

}  // namespace undivided::cuda
