// What every kernel of warpgroups is made of: their sizes, and rings of buffers between those that load and compute.
#pragma once

#include "ptx.cuh"

namespace undivided::cuda {

constexpr int kGroup = 128;      // threads of a warpgroup
constexpr int kGroupRows = 64;   // rows that a warpgroup multiplies at a time
constexpr int kGroupWarps = kGroup / 32;

// A place in a ring of buffers, and the parity of the barriers' phase on this round.
template <int STAGES>
struct PlaceOf {
  int stage = 0;
  uint32_t parity = 0;
  DEVICE void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// One arrival for each warp: its lanes are then all done.
DEVICE void release(uint64_t* barrier, int thread) {
  warp_sync();
  if (thread % 32 == 0) barrier_arrive(barrier);
}

}  // namespace undivided::cuda
