// Which probabilities dropout keeps: a hash of the seed and of the place, the same in every backend.
#pragma once

#include "simd.h"

namespace undivided::UNDIVIDED_VARIANT {

template <class Word>
UNDIVIDED_INLINE Word mix(Word x) {
  x ^= x >> 16;
  x *= 0x7FEB352DU;
  x ^= x >> 15;
  x *= 0x846CA68BU;
  return x ^ (x >> 16);
}

// The word that the elements of one query of one head share; head counts batch * nheads.
UNDIVIDED_INLINE uint32_t dropout_row(uint32_t state, int64_t head, int64_t i) {
  return mix(mix(state ^ static_cast<uint32_t>(head)) ^ static_cast<uint32_t>(i));
}

// All ones where the keys j, j + 1... are kept.
UNDIVIDED_INLINE IntVec kept(uint32_t row, uint32_t threshold, int64_t j) {
  UintVec key;
  for (int lane = 0; lane < kLanes; ++lane) key[lane] = static_cast<uint32_t>(lane) * 0x9E3779B9U;
  key += row + static_cast<uint32_t>(j) * 0x9E3779B9U;
  return (IntVec)(mix(key) >= threshold);
}

}  // namespace undivided::UNDIVIDED_VARIANT
