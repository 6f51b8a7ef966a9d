// Which keys a query sees, and which key tiles a tile of queries visits. Plain arithmetic, for host and device.
//
// Query i stands at i + shift on the key axis and sees the keys from i + shift - left to i + shift + right. Sums of
// positions are 64-bit: a shift and a bound may both be far out.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace undivided::cuda {

struct Window {
  bool has_left, has_right;
  int64_t left, right;
};

// One sequence of a batch, padded or packed.
struct Sequence {
  int64_t first_q, first_k;  // its first row in the tensors
  int32_t lenq, lenk;
  int64_t shift;
};

// Keys [low, high) of one row, or tiles [begin, end) of one tile of queries.
struct Range {
  int32_t begin, end;
};

HOST_DEVICE int32_t clamped(int64_t value, int32_t low, int32_t high) {
  return static_cast<int32_t>(value < low ? low : value > high ? high : value);
}

// The keys that query i sees.
HOST_DEVICE Range visible_keys(const Sequence& at, const Window& window, int32_t i) {
  const int64_t place = i + at.shift;
  return {window.has_left ? clamped(place - window.left, 0, at.lenk) : 0,
          window.has_right ? clamped(place + window.right + 1, 0, at.lenk) : at.lenk};
}

// The queries that see key j.
HOST_DEVICE Range visible_queries(const Sequence& at, const Window& window, int32_t j) {
  if (j >= at.lenk) return {0, 0};
  const int64_t place = j - at.shift;
  return {window.has_right ? clamped(place - window.right, 0, at.lenq) : 0,
          window.has_left ? clamped(place + window.left + 1, 0, at.lenq) : at.lenq};
}

struct Tiles {
  Range visited;  // tiles of TILE_N keys, or of TILE_M queries
  Range whole;    // those of them in which everything is seen: they need no mask
  HOST_DEVICE bool masked(int32_t n) const { return n < whole.begin || n >= whole.end; }
};

// For the queries m to m + TILE_M - 1, as far as the sequence has them.
template <int TILE_M, int TILE_N>
HOST_DEVICE Tiles key_tiles(const Sequence& at, const Window& window, int32_t m) {
  if (m >= at.lenq) return {{0, 0}, {0, 0}};
  const int32_t last = at.lenq - m < TILE_M ? at.lenq - 1 : m + TILE_M - 1;
  // Both bounds grow with the query: the first one sees the first key, the last one the last.
  const Range of_first = visible_keys(at, window, m), of_last = visible_keys(at, window, last);
  if (of_first.begin >= of_last.end) return {{0, 0}, {0, 0}};
  return {{of_first.begin / TILE_N, (of_last.end + TILE_N - 1) / TILE_N},
          {(of_last.begin + TILE_N - 1) / TILE_N, of_first.end / TILE_N}};
}

// For the keys n to n + TILE_N - 1, as far as the sequence has them.
template <int TILE_M, int TILE_N>
HOST_DEVICE Tiles query_tiles(const Sequence& at, const Window& window, int32_t n) {
  if (n >= at.lenk) return {{0, 0}, {0, 0}};
  const bool ragged = at.lenk - n < TILE_N;
  const Range of_first = visible_queries(at, window, n);
  const Range of_last = visible_queries(at, window, ragged ? at.lenk - 1 : n + TILE_N - 1);
  if (of_first.begin >= of_last.end) return {{0, 0}, {0, 0}};
  const Range visited{of_first.begin / TILE_M, (of_last.end + TILE_M - 1) / TILE_M};
  if (ragged) return {visited, {0, 0}};
  return {visited, {(of_last.begin + TILE_M - 1) / TILE_M, of_first.end / TILE_M}};
}

}  // namespace undivided::cuda
