// What the threads of a block share that multiplies matrices and finishes the products: sizes, memory, barriers.
//
// A block stays, and takes one tile of 128 rows by 256 columns after another. One warp loads, two warpgroups multiply
// 64 of the rows each, seven warps finish what those have multiplied: an activation, sums over rows, whatever goes to
// global memory. A tile's sums change hands through shared memory, rounded to 16 bits, so that the tensor cores have
// the next tile while this one is finished.
#pragma once

#include "product_tiles.h"
#include "tile_layout.cuh"
#include "warpgroup.cuh"

namespace undivided::cuda {

constexpr int kProductM = 128, kProductN = 256, kProductK = kPanel;  // a tile, and how deep a step goes
constexpr int kProductStages = 3;                                    // steps that are loaded or multiplied
constexpr int kProductThreads = 4 * kGroup;
// 65536 registers are 256 * 168 + 256 * 88, as they are 512 * 128, which is what the block starts with. (With those,
// ptxas refuses an instruction of 128 sums: a step is two of 64 instead.)
constexpr int kMultiplyingRegisters = 168, kOtherRegisters = 88;
constexpr int kFinishingWarps = 7, kFinishing = kFinishingWarps * 32;  // threads

constexpr uint32_t kLeftBytes = kProductM * kProductK * 2, kRightBytes = kProductN * kProductK * 2;
constexpr uint32_t kHandedBytes = kGroupRows * kProductN * 2;

// Named barriers. 0 is block_sync's.
constexpr int kSecondBegins = 1;
constexpr int kAmongFinishing = 2;

// ALONG_ROWS: the right factor is (columns, depth), and the product sums along its rows; otherwise (depth, columns).
// PAIR: a tile is two products of 128 columns, side by side, with the same columns of two right factors.
template <class ELEMENT, bool ALONG_ROWS_, bool PAIR_>
struct ProductKind {
  using Element = ELEMENT;
  static constexpr bool ALONG_ROWS = ALONG_ROWS_, PAIR = PAIR_;
  static constexpr int COLUMNS = PAIR ? kProductN / 2 : kProductN;  // of the result, in a tile
};

struct alignas(kGroupBytes) ProductShared {
  unsigned char left[kProductStages][kLeftBytes], right[kProductStages][kRightBytes];
  unsigned char handed[2][kHandedBytes];  // 64 rows each, from one warpgroup to another
  alignas(16) unsigned char bias[kProductStages][kProductN * 2];  // of the tile whose first step it is
  alignas(16) float sums[kFinishingWarps][kProductN];  // over rows, of the warps that finish
  uint64_t full[kProductStages], empty[kProductStages], handed_full[2], handed_empty[2];
};

// What a warp does, and which of those it is.
enum class Role { load, multiply, finish };
struct Part {
  Role role;
  int number;  // of a warpgroup that multiplies, of a warp that finishes
};
DEVICE Part part_of(int warp) {
  const int group = warp / kGroupWarps;
  if (group == 1 || group == 2) return {Role::multiply, group - 1};
  if (warp == 0) return {Role::load, 0};
  return {Role::finish, group == 0 ? warp - 1 : warp - 3 * kGroupWarps + kGroupWarps - 1};
}

DEVICE void initialise(ProductShared& shared) {
  require(shared_address(&shared) % kGroupBytes == 0);
  for (int stage = 0; stage < kProductStages; ++stage) {
    barrier_init(&shared.full[stage], 1);
    barrier_init(&shared.empty[stage], 2 * kGroupWarps);
  }
  for (int half = 0; half < 2; ++half) {
    barrier_init(&shared.handed_full[half], kGroupWarps);
    barrier_init(&shared.handed_empty[half], kFinishingWarps);
  }
  barriers_are_initialised();
}

}  // namespace undivided::cuda
