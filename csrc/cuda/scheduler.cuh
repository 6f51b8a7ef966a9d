// The order of the tiles of queries, which every multiprocessor takes from one list. Plain arithmetic.
//
// Under a right bound a late tile of a sequence sees most keys: the list begins with those, so that no long tile
// comes last while the rest of the GPU waits (Graham 1969: within 4/3 of the best). Heads are taken in sections whose
// keys and values fit the L2 cache together, one section after the other.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace undivided::cuda {

// Half of the 50 or 60 MB of a Hopper GPU's L2 cache, so that queries and results pass through the rest.
constexpr int64_t kSectionBytes = 32 << 20;

struct Schedule {
  int32_t tiles;    // in all
  int32_t blocks;   // tiles of queries in the longest sequence
  int32_t nheads;
  int32_t heads;    // of queries, in all batch rows
  int32_t section;  // of them, how many go together
  bool last_first;
};

struct Tile {
  int32_t block, b, h;
};

HOST_DEVICE Tile tile_of(const Schedule& schedule, int32_t index) {
  const int32_t first = index / (schedule.section * schedule.blocks) * schedule.section;
  const int32_t left = schedule.heads - first;
  const int32_t count = left < schedule.section ? left : schedule.section;
  const int32_t within = index - first * schedule.blocks;
  const int32_t block = within / count, head = first + within % count;
  return {schedule.last_first ? schedule.blocks - 1 - block : block, head / schedule.nheads, head % schedule.nheads};
}

// head_bytes: keys and values of one head of the longest sequence. group: heads of queries that share them.
HOST_DEVICE Schedule make_schedule(int32_t batch, int32_t nheads, int32_t group, int32_t seqlen_q, int32_t tile_m,
                                   int64_t head_bytes, bool last_first) {
  const int32_t blocks = seqlen_q / tile_m + (seqlen_q % tile_m != 0), heads = batch * nheads;
  const int64_t fit = kSectionBytes / (head_bytes > 0 ? head_bytes : 1);
  const int64_t section = (fit > 1 ? fit : 1) * group;
  return {blocks * heads, blocks, nheads, heads, static_cast<int32_t>(section < heads ? section : heads), last_first};
}

}  // namespace undivided::cuda
