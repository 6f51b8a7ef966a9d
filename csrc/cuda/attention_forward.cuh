// The attention forward of a Hopper GPU, on the device.
//
// A block has one warpgroup that loads and two or three that compute, 64 queries each, as in FlashAttention-3 (Shah et
// al. 2024). The loading one keeps the copy engine two tiles ahead. The computing ones take turns to give the tensor
// cores work: while one does the softmax, they work for another. Blocks stay, and take tiles of queries from a list until
// it is empty.
#pragma once

#include "attention_block.cuh"
#include "hidden_values.cuh"
#include "scheduler.cuh"
#include "scores.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace undivided::cuda {

// ---- the loading warpgroup: one thread of it ----

template <class K, int HEIGHT>
DEVICE void load_tile(unsigned char* to, const TensorMap* map, uint64_t* full, const Rows& rows, int b, int h,
                      int64_t first) {
  barrier_arrive_and_expect(full, HEIGHT * K::HEAD_DIM * 2);
#pragma unroll
  for (int panel = 0; panel < K::HEAD_DIM / kPanel; ++panel) {
    // Along a stride of 0 there is one element for all.
    load_box(to + panel * panel_bytes(HEIGHT), map, full, panel * kPanel, rows.h == 0 ? 0 : h,
             static_cast<int>(first), rows.b == 0 ? 0 : b);
  }
}

template <class K>
DEVICE void load(Shared<K>& shared, const TensorMap* q, const TensorMap* k, const TensorMap* v,
                 const AttentionForward& job, const Schedule& schedule) {
  const Window window = window_of(job);
  const int group = job.nheads / job.nheads_kv;
  Place queries, keys;
  for (int index = block_index();; index = grid_size() + atomic_next(job.counter)) {
    Tile tile{};
    Sequence at{};
    if (index < schedule.tiles) {
      tile = tile_of(schedule, index);
      at = sequence_of(job, tile.b);
      if (job.cu_q != nullptr && tile.block * K::TILE_M >= at.lenq) continue;  // the sequence has no such tile
    }
    barrier_wait(&shared.q_empty[queries.stage], queries.parity ^ 1);
    if (index >= schedule.tiles) {
      shared.index[queries.stage] = -1;
      barrier_arrive(&shared.q_full[queries.stage]);
      return;
    }
    shared.index[queries.stage] = index;
    const int m = tile.block * K::TILE_M, head = tile.h / group;
    load_tile<K, K::TILE_M>(shared.q[queries.stage], q, &shared.q_full[queries.stage], job.q, tile.b, tile.h, at.first_q + m);
    queries.advance();
    const Range visited = key_tiles<K::TILE_M, kTileN>(at, window, m).visited;
    for (int n = visited.begin; n < visited.end; ++n) {
      const int64_t first = at.first_k + n * kTileN;
      barrier_wait(&shared.k_empty[keys.stage], keys.parity ^ 1);
      load_tile<K, kTileN>(shared.k[keys.stage], k, &shared.k_full[keys.stage], job.k, tile.b, head, first);
      barrier_wait(&shared.v_empty[keys.stage], keys.parity ^ 1);
      load_tile<K, kTileN>(shared.v[keys.stage], v, &shared.v_full[keys.stage], job.v, tile.b, head, first);
      keys.advance();
    }
  }
}

// ---- the computing warpgroups ----

// One warpgroup's share of a tile of queries.
struct Rows64 {
  int group, thread;  // which warpgroup, which of its threads
  int b, h, first;    // the first of the 64 queries
  int row;            // this thread's first query; its second one is 8 further
  Sequence at;
  Tiles tiles;
  Range seen[2];      // the keys that this thread's queries see
  HeadBias bias;
};

template <class K>
DEVICE Rows64 rows_of(const AttentionForward& job, const Schedule& schedule, int index, int group, int thread) {
  const Tile tile = tile_of(schedule, index);
  Rows64 own{};
  own.group = group;
  own.thread = thread;
  own.b = tile.b;
  own.h = tile.h;
  own.first = tile.block * K::TILE_M + group * kGroupRows;
  own.row = own.first + fragment_row(thread);
  own.at = sequence_of(job, tile.b);
  const Window window = window_of(job);
  own.tiles = key_tiles<K::TILE_M, kTileN>(own.at, window, tile.block * K::TILE_M);
#pragma unroll
  for (int half = 0; half < 2; ++half) own.seen[half] = visible_keys(own.at, window, own.row + 8 * half);
  own.bias = head_bias(job, tile.b, tile.h);
  return own;
}

// Starts s [64, 128] = q k^T. q: the first of the warpgroup's rows in a tile.
template <class K>
DEVICE void start_scores(float (&s)[kTileN / 2], const unsigned char* q, const unsigned char* k) {
  const uint32_t rows = shared_address(q), keys = shared_address(k);
  keep(s);
  products_begin();
#pragma unroll
  for (int d = 0; d < K::HEAD_DIM; d += 16) {
    multiply_rows<typename K::Element>(s, summed_along_rows(rows, K::TILE_M, d), summed_along_rows(keys, kTileN, d),
                                       d > 0);
  }
  products_commit();
}

// Starts acc [64, HEAD_DIM] += weights [64, 128] v.
template <class K>
DEVICE void start_values(float (&acc)[K::HEAD_DIM / 2], uint32_t (&weights)[kTileN / 4], const unsigned char* v) {
  const uint32_t values = shared_address(v);
  keep(acc);
  keep(weights);
  products_begin();
#pragma unroll
  for (int j = 0; j < kTileN; j += 16) {
    multiply_columns<typename K::Element>(acc, weights + j / 4, summed_along_columns(values, kTileN, j));
  }
  products_commit();
}

// From the scores of key tile n to probabilities; shrink: what the older sums shrink by.
template <class K>
DEVICE void weigh(float (&s)[kTileN / 2], Softmax& state, float unit, float (&shrink)[2], const AttentionForward& job,
                  const Rows64& own, int n) {
  const int first = n * kTileN, column = first + fragment_column(own.thread);
  if constexpr (!K::PLAIN) {
    transform<1>(s, job, own.bias, own.at.shift, own.row, column, own.first, first, kGroupRows);
  }
  if (own.tiles.masked(n)) hide(s, own.seen, column);
  softmax_step(s, state, unit, shrink);
}

// Of a masked tile, before its values are used: hidden_values.cuh. Each warpgroup looks through the whole tile, so all come
// to the same answer, and none changes anything before all have looked.
template <class K>
DEVICE void guard(Shared<K>& shared, unsigned char* v, float (&acc)[K::HEAD_DIM / 2], const Rows64& own, int n) {
  using Element = typename K::Element;
  const bool bad = share_is_bad<Element, K::KEY_BYTES>(v, own.thread, kGroup);
  if (!named_any(kAmong + own.group, kGroup, bad)) return;
  named_sync(kTogether, K::COMPUTING);
  if (own.group < 2) clear_bad_rows<Element, K::HEAD_DIM, kTileN>(v, shared.bad, own.group * kGroup + own.thread);
  publish_to_engines();
  named_sync(kTogether, K::COMPUTING);
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    factor[half] = sees_bad<kTileN>(shared.bad, own.seen[half], n * kTileN) ? __builtin_nanf("") : 1.0F;
  }
  scale_rows(acc, factor);
}

// Attention of 64 queries: acc, unfinished, and the softmax's state. tile: the queries, which are there.
//
// The next scores are on their way before the softmax of these ones has been used: a warpgroup computes while the tensor
// cores work for it, and for the other one.
template <class K>
DEVICE void attend(Shared<K>& shared, const unsigned char* tile, Place& keys, float (&acc)[K::HEAD_DIM / 2],
                   Softmax& state, float unit, const AttentionForward& job, const Rows64& own) {
  const Range visited = own.tiles.visited;
  if (visited.begin >= visited.end) return;
  float s[kTileN / 2];
  uint32_t weights[kTileN / 4];
  const int mine = kTurn + own.group, next = kTurn + (own.group + 1) % K::GROUPS;
  const unsigned char* q = tile + own.group * kGroupRows * kRowBytes;
  float shrink[2];

  barrier_wait(&shared.k_full[keys.stage], keys.parity);
  start_scores<K>(s, q, shared.k[keys.stage]);
  products_wait<0>();
  keep(s);
  release(&shared.k_empty[keys.stage], own.thread);
  weigh<K>(s, state, unit, shrink, job, own, visited.begin);
  pack_weights<typename K::Element>(s, weights);

  for (int n = visited.begin;; ++n) {
    const Place here = keys;
    keys.advance();
    unsigned char* v = shared.v[here.stage];
    if (n + 1 == visited.end) {
      barrier_wait(&shared.v_full[here.stage], here.parity);
      if (own.tiles.masked(n)) guard(shared, v, acc, own, n);
      start_values<K>(acc, weights, v);
      products_wait<0>();
      keep(acc);
      keep(weights);
      release(&shared.v_empty[here.stage], own.thread);
      return;
    }
    if (own.tiles.masked(n)) {  // before the turn: the warpgroups meet there
      barrier_wait(&shared.v_full[here.stage], here.parity);
      guard(shared, v, acc, own, n);
    }
    barrier_wait(&shared.k_full[keys.stage], keys.parity);
    named_sync(mine, 2 * kGroup);
    start_scores<K>(s, q, shared.k[keys.stage]);
    barrier_wait(&shared.v_full[here.stage], here.parity);
    start_values<K>(acc, weights, v);
    named_arrive(next, 2 * kGroup);
    products_wait<1>();
    keep(s);
    release(&shared.k_empty[keys.stage], own.thread);
    weigh<K>(s, state, unit, shrink, job, own, n + 1);
    products_wait<0>();
    keep(acc);
    keep(weights);
    release(&shared.v_empty[here.stage], own.thread);
    pack_weights<typename K::Element>(s, weights);
    scale_rows(acc, shrink);
  }
}

// Writes 64 rows of results, through the place of the queries that they belong to, so that whole rows are stored.
template <class K>
DEVICE void store(unsigned char* tile, const float (&acc)[K::HEAD_DIM / 2], const AttentionForward& job,
                  const Rows64& own, int rows) {
  const int row = own.group * kGroupRows + fragment_row(own.thread), column = fragment_column(own.thread);
#pragma unroll
  for (int i = 0; i < K::HEAD_DIM / 2; i += 2) {
    const uint32_t at = swizzled(K::TILE_M, row + i / 2 % 2 * 8, column + i / 4 * 8);
    *reinterpret_cast<uint32_t*>(tile + at) = packed<typename K::Element>(acc[i], acc[i + 1]);
  }
  named_sync(kAmong + own.group, kGroup);
  constexpr int CHUNKS = K::HEAD_DIM / 8;  // of a row
  unsigned char* out = static_cast<unsigned char*>(job.out.data) + 2 * (own.b * job.out.b + own.h * job.out.h);
#pragma unroll 4
  for (int n = own.thread; n < kGroupRows * CHUNKS; n += kGroup) {
    const int r = n / CHUNKS, d = n % CHUNKS * 8;
    if (own.first + r >= rows) continue;
    const Chunk* chunk = reinterpret_cast<Chunk*>(tile + swizzled(K::TILE_M, own.group * kGroupRows + r, d));
    *reinterpret_cast<Chunk*>(out + 2 * ((own.at.first_q + own.first + r) * job.out.s + d)) = *chunk;
  }
}

template <class K>
DEVICE void compute(Shared<K>& shared, const AttentionForward& job, const Schedule& schedule) {
  const int group = warp_uniform(thread_index() / kGroup) - 1, thread = thread_index() % kGroup;
  const float unit = K::PLAIN ? job.scale * kLog2e : 1.0F;
  Place queries, keys;
  if (group == K::GROUPS - 1) named_arrive(kTurn, 2 * kGroup);  // warpgroup 0 has the first turn
  while (true) {
    barrier_wait(&shared.q_full[queries.stage], queries.parity);
    const int index = shared.index[queries.stage];
    if (index < 0) break;
    const Rows64 own = rows_of<K>(job, schedule, index, group, thread);
    unsigned char* q = shared.q[queries.stage];
    float acc[K::HEAD_DIM / 2] = {};
    Softmax state;
    attend(shared, q, keys, acc, state, unit, job, own);

    const int rows = job.cu_q != nullptr ? own.at.lenq : job.seqlen_q;  // that are written
    const bool outside[2] = {own.row >= own.at.lenq, own.row + 8 >= own.at.lenq};
    float lse[2];
    softmax_finish(acc, state, unit, outside, job.sinks == nullptr ? nullptr : job.sinks + own.h, lse);
    store<K>(q, acc, job, own, rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = own.row + 8 * half;
      if (thread % 4 == 0 && i < rows) {
        job.lse[own.b * job.lse_b + own.h * job.lse_h + own.at.first_q + i] = lse[half];
      }
    }
    publish_to_engines();  // the copy engine will write where the results were
    release(&shared.q_empty[queries.stage], thread);
    queries.advance();
  }
  if (group == 0) named_sync(kTurn, 2 * kGroup);  // the last turn is nobody's
}

template <class K>
KERNEL(K::THREADS)
attention_forward_kernel(const GRID_CONSTANT TensorMap q, const GRID_CONSTANT TensorMap k,
                         const GRID_CONSTANT TensorMap v, const GRID_CONSTANT AttentionForward job,
                         const GRID_CONSTANT Schedule schedule) {
  auto& shared = *static_cast<Shared<K>*>(shared_memory());
  if (thread_index() == 0) {
    require(shared_address(&shared) % kGroupBytes == 0);
    for (int stage = 0; stage < kStages; ++stage) {
      for (uint64_t* full : {shared.q_full, shared.k_full, shared.v_full}) barrier_init(full + stage, 1);
      for (uint64_t* empty : {shared.q_empty, shared.k_empty, shared.v_empty}) barrier_init(empty + stage, K::WARPS);
    }
    barriers_are_initialised();
    for (const TensorMap* map : {&q, &k, &v}) prefetch(map);
  }
  block_sync();
  if (thread_index() < kGroup) {
    release_registers<K::LOADING_REGISTERS>();
    if (thread_index() == 0) load(shared, &q, &k, &v, job, schedule);
  } else {
    claim_registers<K::COMPUTING_REGISTERS>();
    compute(shared, job, schedule);
  }
}

}  // namespace undivided::cuda
