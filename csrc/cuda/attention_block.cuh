// What the threads of an attention block share: sizes, memory, barriers, and which sequence they are in.
#pragma once

#include "attention.h"
#include "mask.cuh"
#include "ptx.cuh"
#include "tile_layout.cuh"
#include "warpgroup.cuh"

namespace undivided::cuda {

constexpr int kTileM = 128, kTileN = 128;  // queries of a tile, keys of a tile
constexpr int kComputing = 2 * kGroup, kThreads = kComputing + kGroup;
constexpr int kWarps = kComputing / 32;    // that compute
// 65536 registers: 128 * 40 + 256 * 232 fit, as 384 * 168 do, which is what the block starts with.
constexpr int kLoadingRegisters = 40, kComputingRegisters = 232;
constexpr int kStages = 2;  // of queries, and of keys and values

// Named barriers. 0 is block_sync's.
constexpr int kTurn = 1;      // and 2: the softmax of warpgroup 0, of warpgroup 1
constexpr int kTogether = 3;  // both
constexpr int kAmong = 4;     // and 5: the threads of one

// PLAIN: a positive scale and nothing else happens to the scores, so that it can wait for the exponential.
template <class ELEMENT, int HEAD_DIM_, bool PLAIN_>
struct Kind {
  using Element = ELEMENT;
  static constexpr int HEAD_DIM = HEAD_DIM_;
  static constexpr bool PLAIN = PLAIN_;
  static constexpr uint32_t TILE_BYTES = kTileM * HEAD_DIM * 2;  // of queries, keys, values alike
};

template <class K>
struct alignas(kGroupBytes) Shared {
  unsigned char q[kStages][K::TILE_BYTES];  // and the results, on their way out
  unsigned char k[kStages][K::TILE_BYTES], v[kStages][K::TILE_BYTES];
  uint64_t q_full[kStages], q_empty[kStages];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  int32_t index[kStages];  // which tile the queries are of; -1: there are no more
  uint8_t bad[kTileN];     // see hidden_values.cuh
};

using Place = PlaceOf<kStages>;

DEVICE Window window_of(const AttentionForward& job) { return {job.has_left, job.has_right, job.left, job.right}; }

DEVICE Sequence sequence_of(const AttentionForward& job, int b) {
  Sequence at{0, 0, job.seqlen_q, job.seqlen_k, job.shift};
  if (job.cu_q != nullptr) {
    at.first_q = job.cu_q[b];
    at.first_k = job.cu_k[b];
    at.lenq = job.cu_q[b + 1] - job.cu_q[b];
    at.lenk = job.cu_k[b + 1] - job.cu_k[b];
    if (!job.own_shift) at.shift = static_cast<int64_t>(at.lenk) - at.lenq;
  }
  if (job.query_lengths != nullptr) at.lenq = clamped(job.query_lengths[b], 0, job.seqlen_q);
  if (job.key_lengths != nullptr) at.lenk = clamped(job.key_lengths[b], 0, job.seqlen_k);
  if (job.shifts != nullptr) at.shift = job.shifts[b];
  return at;
}

}  // namespace undivided::cuda
