// Keeps NaN and infinity in values that a row does not see out of its result.
//
// A product weighs what is hidden with 0, and 0 times NaN is NaN. So where a tile has hidden elements its values are
// looked through; in the rare tile with a number that is not finite, the value's row is set to 0 in shared memory, and
// the queries that do see it become NaN.
#pragma once

#include "mask.cuh"
#include "ptx.cuh"
#include "tile_layout.cuh"

namespace undivided::cuda {

// All bits of the exponent, in both halves.
template <class Element>
constexpr uint32_t kExponents = 0;
template <>
inline constexpr uint32_t kExponents<Bfloat16> = 0x7F807F80;
template <>
inline constexpr uint32_t kExponents<Float16> = 0x7C007C00;

template <class Element>
DEVICE bool not_finite(uint32_t largest) {
  constexpr uint32_t low = kExponents<Element> & 0xFFFF;
  return (largest & 0xFFFF) >= low || (largest >> 16) >= low;
}

DEVICE uint32_t largest_magnitude(const Chunk& chunk, uint32_t largest) {
#pragma unroll
  for (uint32_t word : chunk.words) largest = max_of_halves(largest, word & 0x7FFF7FFF);
  return largest;
}

// Whether this thread's share of a tile of BYTES bytes has a number that is not finite.
template <class Element, int BYTES>
DEVICE bool share_is_bad(const void* tile, int thread, int threads) {
  const Chunk* chunks = static_cast<const Chunk*>(tile);
  uint32_t largest = 0;
#pragma unroll 4
  for (int n = thread; n < BYTES / 16; n += threads) largest = largest_magnitude(chunks[n], largest);
  return not_finite<Element>(largest);
}

// Sets rows with a number that is not finite to 0, and says in bad[row] which those are. Two threads share a row.
template <class Element, int HEAD_DIM, int ROWS>
DEVICE void clear_bad_rows(void* tile, uint8_t* bad, int thread) {
  const int row = thread / 2, column = thread % 2 * (HEAD_DIM / 2);
  auto chunk = [&](int n) {
    return reinterpret_cast<Chunk*>(static_cast<unsigned char*>(tile) + swizzled(ROWS, row, column + 8 * n));
  };
  uint32_t largest = 0;
#pragma unroll 1
  for (int n = 0; n < HEAD_DIM / 16; ++n) largest = largest_magnitude(*chunk(n), largest);
  const bool mine = not_finite<Element>(largest);
  const bool either = shuffle_xor(mine, 1) || mine;
  if (either) {
#pragma unroll 1
    for (int n = 0; n < HEAD_DIM / 16; ++n) *chunk(n) = Chunk{};
  }
  bad[row] = static_cast<uint8_t>(either);
}

// Whether a query that sees the keys `seen` sees a bad one among the ROWS keys from `first` on.
template <int ROWS>
DEVICE bool sees_bad(const uint8_t* bad, const Range& seen, int first) {
  bool found = false;
#pragma unroll 1
  for (int row = 0; row < ROWS; ++row) {
    found = found || (bad[row] != 0 && first + row >= seen.begin && first + row < seen.end);
  }
  return found;
}

}  // namespace undivided::cuda
