// What the threads of an attention block share: sizes, memory, barriers, and which sequence they are in.
#pragma once

#include "attention.h"
#include "mask.cuh"
#include "ptx.cuh"
#include "tile_layout.cuh"
#include "warpgroup.cuh"

namespace undivided::cuda {

constexpr int kTileN = 128;  // keys of a tile
constexpr int kStages = 2;   // of queries, and of keys and values

// Named barriers. 0 is block_sync's; up to three warpgroups compute.
constexpr int kTurn = 1;      // and 2, 3: the products of warpgroup 0, 1, 2
constexpr int kTogether = 4;  // all that compute
constexpr int kAmong = 5;     // and 6, 7: the threads of one
constexpr int kSums = 8;      // those who sum by distance

// A block of GROUPS warpgroups that compute and one that loads. Of 65536 registers a thread has 168 when it starts with
// two groups, 128 with three; then the loading ones give most of theirs to the others.
template <int COUNT>
struct Team {
  static constexpr int GROUPS = COUNT;
  static constexpr int COMPUTING = GROUPS * kGroup, THREADS = COMPUTING + kGroup;
  static constexpr int WARPS = COMPUTING / 32;  // that compute
  static constexpr int LOADING_REGISTERS = GROUPS == 2 ? 24 : 32, COMPUTING_REGISTERS = GROUPS == 2 ? 240 : 160;
};

// PLAIN: a positive scale and nothing else happens to the scores, so that it can wait for the exponential.
template <class ELEMENT, int HEAD_DIM_, bool PLAIN_, int GROUPS>
struct Kind : Team<GROUPS> {
  using Element = ELEMENT;
  static constexpr int HEAD_DIM = HEAD_DIM_;
  static constexpr bool PLAIN = PLAIN_;
  static constexpr int TILE_M = GROUPS * kGroupRows;  // queries of a tile
  static constexpr uint32_t QUERY_BYTES = TILE_M * HEAD_DIM * 2, KEY_BYTES = kTileN * HEAD_DIM * 2;  // and of values
};

template <class K>
struct alignas(kGroupBytes) Shared {
  unsigned char q[kStages][K::QUERY_BYTES];  // and the results, on their way out
  unsigned char k[kStages][K::KEY_BYTES], v[kStages][K::KEY_BYTES];
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
