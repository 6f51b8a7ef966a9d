// The attention backward of a Hopper GPU, on the device: five products for each pair of tiles.
//
// A block owns 128 keys of one head and goes through the queries that see them, as in FlashAttention-3 (Shah et al.
// 2024). Two warpgroups have 64 of the keys each. Scores are made with keys as rows, so that probabilities and their
// gradients feed the sums of dv and dk straight from registers. The gradients also go to shared memory: dq needs those of
// both warpgroups, and is added to float32 sums in global memory, to which other blocks add theirs at the same time.
// In which order they do is left to chance, and so are the last bits of dq.
#pragma once

#include "attention_block.cuh"
#include "hidden_values.cuh"
#include "scheduler.cuh"
#include "scores.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace undivided::cuda {

constexpr int kBackwardLoadingRegisters = 24, kBackwardComputingRegisters = 240;

template <class ELEMENT, int HEAD_DIM_, bool PLAIN_>
struct BackwardKind {
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
  alignas(16) float lse[kStages][K::TILE_M], delta[kStages][K::TILE_M];
  uint64_t keys_full, q_full[kStages], q_empty[kStages], dout_full[kStages], dout_empty[kStages];
  uint8_t bad[kTileN];  // see hidden_values.cuh
};

// Where the rows of a sequence begin in the statistics and sums, which are padded to whole tiles.
DEVICE int64_t padded_row(const AttentionForward& call, const AttentionBackward& job, int b, int h, const Sequence& at) {
  if (call.cu_q == nullptr) return (static_cast<int64_t>(b) * call.nheads + h) * job.rows_padded;
  return h * job.rows_padded + (at.first_q + static_cast<int64_t>(b) * kPadding) / kPadding * kPadding;
}

// The tile of queries of one step. Without a right bound all blocks of a head would begin with the same queries, and add
// to the same sums: each begins elsewhere.
DEVICE int tile_of_step(const Range& visited, bool has_right, int block, int step) {
  const int count = visited.end - visited.begin;
  return visited.begin + (has_right ? step : (step + block) % count);
}

// ---- before: what a row needs, and sums of 0 ----

// One block of 128 threads for 64 rows of one head. delta = sum(out * dout) - dlse; lse2 = lse * log2(e), inf for a row
// that saw nothing or lies outside, so that its probabilities come out 0.
template <class Element, int HEAD_DIM>
DEVICE void prepare_rows(const AttentionBackward& job, int block, int h, int b) {
  const AttentionForward& call = job.call;
  const Sequence at = sequence_of(call, b);
  const int rows = (call.cu_q != nullptr ? at.lenq : call.seqlen_q), first = block * kGroupRows;
  if (first >= (rows + kPadding - 1) / kPadding * kPadding) return;
  const int64_t padded = padded_row(call, job, b, h, at) + first;
  constexpr int SHARE = HEAD_DIM / 8;  // threads of a row
  const int thread = thread_index(), d = thread % SHARE * 8;
  const auto* out = static_cast<const uint16_t*>(call.out.data) + b * call.out.b + h * call.out.h + d;
  const auto* dout = static_cast<const uint16_t*>(job.dout.data) + b * job.dout.b + h * job.dout.h + d;
  for (int r = thread / SHARE; r < kGroupRows; r += kGroup / SHARE) {
    const bool inside = first + r < at.lenq;
    float sum = 0.0F;
    if (inside) {
      const int64_t row = at.first_q + first + r;
      const Chunk x = *reinterpret_cast<const Chunk*>(out + row * call.out.s);
      const Chunk y = *reinterpret_cast<const Chunk*>(dout + row * job.dout.s);
#pragma unroll
      for (int n = 0; n < 4; ++n) sum += product_of_halves<Element>(x.words[n], y.words[n]);
    }
#pragma unroll
    for (int lanes = 1; lanes < SHARE; lanes *= 2) sum += shuffle_xor(sum, lanes);
    if (d == 0) {
      const int64_t from = b * call.lse_b + h * call.lse_h + at.first_q + first + r;
      const float natural = inside ? call.lse[from] : -kInfinity;
      job.lse2[padded + r] = natural == -kInfinity ? kInfinity : natural * kLog2e;
      job.delta[padded + r] = inside ? sum - (job.dlse == nullptr ? 0.0F : job.dlse[from]) : 0.0F;
    }
  }
  auto* sums = reinterpret_cast<Chunk*>(job.sums + padded * HEAD_DIM);
  for (int n = thread; n < kGroupRows * HEAD_DIM / 4; n += kGroup) sums[n] = Chunk{};
}

// ---- after: sums to dq ----

// The place of a thread's element 4 * n of the 64 x 64 sums of a warpgroup: neighbours in a warp are neighbours there.
HOST_DEVICE int sum_place(int n, int thread) { return (n * kGroup + thread) * 4; }

template <class Element, int HEAD_DIM>
DEVICE void finish_rows(const AttentionBackward& job, int block, int h, int b) {
  const AttentionForward& call = job.call;
  const Sequence at = sequence_of(call, b);
  const int rows = call.cu_q != nullptr ? at.lenq : call.seqlen_q, first = block * kGroupRows;
  if (first >= rows) return;
  const int64_t padded = padded_row(call, job, b, h, at) + first;
  auto* dq = static_cast<uint16_t*>(job.dq.data) + b * job.dq.b + h * job.dq.h;
  const int thread = thread_index(), row = first + fragment_row(thread), column = fragment_column(thread);
#pragma unroll
  for (int panel = 0; panel < HEAD_DIM / kPanel; ++panel) {
    const float* sums = job.sums + padded * HEAD_DIM + panel * kGroupRows * kPanel;
#pragma unroll
    for (int n = 0; n < kPanel / 8; ++n) {
      const auto four = *reinterpret_cast<const Four*>(sums + sum_place(n, thread));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= rows) continue;
        const int64_t to = (at.first_q + row + 8 * half) * job.dq.s + panel * kPanel + n * 8 + column;
        *reinterpret_cast<uint32_t*>(dq + to) =
            packed<Element>(four.values[2 * half] * call.scale, four.values[2 * half + 1] * call.scale);
      }
    }
  }
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

// Sets the rows of a tile of queries that lie outside of the sequence to 0: 0 times what stands there must be 0.
template <class K>
DEVICE void clear_outside(unsigned char* tile, int inside, int thread) {
  constexpr int CHUNKS = K::HEAD_DIM / 8;
#pragma unroll 1
  for (int n = inside * CHUNKS + thread; n < K::TILE_M * CHUNKS; n += kComputing) {
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
      named_sync(kTogether, kComputing);
      clear_bad_rows<Element, K::HEAD_DIM, kTileN>(shared.k, shared.bad, group * kGroup + thread);
      publish_to_engines();
      named_sync(kTogether, kComputing);
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
      for (int step = 0; step < count; ++step) {
        const int index = tile_of_step(tiles.visited, call.has_right, tile.block, step), m = index * K::TILE_M;
        unsigned char *q = shared.q[place.stage], *dout = shared.dout[place.stage], *ds = shared.ds[place.stage];
        float s[COUNT], dp[COUNT];
        barrier_wait(&shared.q_full[place.stage], place.parity);
        if (m + K::TILE_M > at.lenq) {
          barrier_wait(&shared.dout_full[place.stage], place.parity);
          clear_outside<K>(q, at.lenq - m, group * kGroup + thread);
          clear_outside<K>(dout, at.lenq - m, group * kGroup + thread);
          publish_to_engines();
          named_sync(kTogether, kComputing);
        }
        start_rows<K>(s, own_k, q);
        barrier_wait(&shared.dout_full[place.stage], place.parity);
        start_rows<K>(dp, own_v, dout);
        products_wait<1>();
        keep(s);
        const bool masked = tiles.masked(index);
        if constexpr (!K::PLAIN) transform<-1>(s, call, bias, at.shift, m + column, key, m, n + group * kGroupRows, kGroupRows);
        if (any_bad) {
#pragma unroll
          for (int i = 0; i < COUNT; ++i) s[i] = bad[i / 2 % 2] ? __builtin_nanf("") : s[i];
        }
        if (masked) replace_hidden(s, seen, m + column, -kInfinity);
        const float *lse = shared.lse[place.stage] + column, *delta = shared.delta[place.stage] + column;
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
          const Two of = *reinterpret_cast<const Two*>(lse + 2 * i);
#pragma unroll
          for (int e = 0; e < 4; ++e) s[i + e] = exp2_fast(s[i + e] * unit - of.values[e % 2]);
        }
        products_wait<0>();
        keep(dp);
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
          const Two of = *reinterpret_cast<const Two*>(delta + 2 * i);
#pragma unroll
          for (int e = 0; e < 4; ++e) dp[i + e] = s[i + e] * (dp[i + e] - of.values[e % 2]);
        }
        if (masked) replace_hidden(dp, seen, m + column, 0.0F);
        uint32_t p[COUNT / 2], gradients[COUNT / 2];
        pack_weights<Element>(s, p);
        start_sums<K>(dv, p, dout);
        pack_weights<Element>(dp, gradients);
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i) {
          const uint32_t to =
              swizzled(kTileN, key - n + i % 2 * 8, column + i / 2 * 8);
          *reinterpret_cast<uint32_t*>(ds + to) = gradients[i];
        }
        publish_to_engines();
        start_sums<K>(dk, gradients, q);
        named_sync(kTogether, kComputing);
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
        keep(dq);
        // 64 rows of 64 columns: the tile's second rows, or its second columns.
        float* to = sums + static_cast<int64_t>(m) * K::HEAD_DIM + group * kGroupRows * kPanel;
#pragma unroll
        for (int i = 0; i < kPanel / 8; ++i) add_four(to + sum_place(i, thread), dq + 4 * i);
        place.advance();
      }
    }
    named_sync(kTogether, kComputing);  // nobody reads k any more
  }
  const int rows = call.cu_k != nullptr ? at.lenk : call.seqlen_k;
  if (n >= rows) return;
  store_keys<K>(shared.k, dk, call.scale, job.dk, tile.b, tile.h, at.first_k, n, rows, group, thread);
  store_keys<K>(shared.v, dv, 1.0F, job.dv, tile.b, tile.h, at.first_k, n, rows, group, thread);
}

template <class K>
KERNEL(kThreads)
attention_backward_kernel(const GRID_CONSTANT TensorMap q, const GRID_CONSTANT TensorMap k,
                          const GRID_CONSTANT TensorMap v, const GRID_CONSTANT TensorMap dout,
                          const GRID_CONSTANT AttentionBackward job, const GRID_CONSTANT Schedule schedule) {
  auto& shared = *static_cast<BackwardShared<K>*>(shared_memory());
  if (thread_index() == 0) {
    require(shared_address(&shared) % kGroupBytes == 0);
    barrier_init(&shared.keys_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      for (uint64_t* full : {shared.q_full, shared.dout_full}) barrier_init(full + stage, 1);
      for (uint64_t* empty : {shared.q_empty, shared.dout_empty}) barrier_init(empty + stage, kWarps);
    }
    barriers_are_initialised();
    for (const TensorMap* map : {&q, &k, &v, &dout}) prefetch(map);
  }
  block_sync();
  const Tile tile = tile_of(schedule, block_index());
  if (thread_index() < kGroup) {
    release_registers<kBackwardLoadingRegisters>();
    if (thread_index() == 0) load_backward(shared, &q, &k, &v, &dout, job, tile);
  } else {
    claim_registers<kBackwardComputingRegisters>();
    compute_backward(shared, job, tile);
  }
}

template <class K>
KERNEL(kGroup)
attention_prepare_kernel(const GRID_CONSTANT AttentionBackward job) {
  prepare_rows<typename K::Element, K::HEAD_DIM>(job, block_index(), block_index(1), block_index(2));
}

template <class K>
KERNEL(kGroup)
attention_finish_kernel(const GRID_CONSTANT AttentionBackward job) {
  finish_rows<typename K::Element, K::HEAD_DIM>(job, block_index(), block_index(1), block_index(2));
}

}  // namespace undivided::cuda
