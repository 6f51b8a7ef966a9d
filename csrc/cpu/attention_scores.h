// One tile of scores, from q k^T to what the softmax takes: scale or softcap, bias, mask; in units of log2(e).
#pragma once

#include "attention_blocks.h"
#include "exp2.h"
#include "matmul_tile.h"

namespace undivided::UNDIVIDED_VARIANT {

// Degree of the polynomial of exp2: what the rounding of the probabilities leaves visible.
template <class Word>
constexpr int kExp2Degree = kPerWord<Word> == 2 ? 4 : 5;

struct Tile {
  const AttentionCall* call;
  Sequence sequence;
  int64_t h;           // query head
  int64_t i0, n0;      // the first query and key
  int rows, keys;
  float* s;            // (rows, keys)
  int row;             // stride of s and slope
  float* distance;     // (rows + keys + kLanes,): bias by key minus query, or null
  float* slope;        // (rows, keys): derivative of the softcap, where the backward needs it, or null
  float factor;        // what s is multiplied by when it is used
  bool plain;          // s is q k^T as it is
  bool whole;          // every row sees every column, in whole vectors
};

// The columns [low, high) that a row sees, within the whole vectors [begin, end).
struct Columns {
  int low, high, begin, end;
};

// A scale of 0, or one that the processor may take for 0, would make NaN of the -inf of what is hidden.
inline bool is_plain(const AttentionCall& call) {
  return call.softcap == 0.0F && call.bias.data == nullptr && call.table == nullptr && call.slopes == nullptr &&
         call.mask.data == nullptr && call.scale > 0x1p-120F;
}

// The bias that depends on the distance alone: element c - r + rows - 1 belongs to row r and column c.
inline void fill_distances(const Tile& tile) {
  const AttentionCall& call = *tile.call;
  const int64_t first = tile.n0 - tile.i0 - tile.sequence.at - (tile.rows - 1);
  const int count = tile.rows + tile.keys + kLanes;
  if (call.table != nullptr) {
    const float* column = call.table + tile.h * call.table_column;
    auto value = [&](int64_t d) { return column[call.buckets[d + call.span] * call.table_row] * kLog2E; };
    const float before = value(-call.span), after = value(call.span);
    int x = 0;
    for (const int64_t far = smaller(count, -call.span - first); x < far; ++x) tile.distance[x] = before;
    for (const int64_t near = smaller(count, call.span - first); x < near; ++x) tile.distance[x] = value(first + x);
    for (; x < count; ++x) tile.distance[x] = after;
  } else {
    const float slope = -call.slopes[tile.sequence.b * call.slopes_b + tile.h * call.slopes_h] * kLog2E;
    for (int x = 0; x < count; ++x) {
      const int64_t d = first + x;
      tile.distance[x] = slope * static_cast<float>(d < 0 ? -d : d);
    }
  }
}

// The elements of a plane for row r and the columns c on; beyond the last key 0. Only what exists is read.
UNDIVIDED_INLINE Vec bias_at(const Tile& tile, const Plane& bias, int r, int c) {
  const int64_t at = tile.sequence.b * bias.b + tile.h * bias.h + (tile.i0 + r) * bias.m + (tile.n0 + c) * bias.n;
  if (bias.n == 0) return broadcast(load_part_as(bias.data, bias.dtype, at, 1)[0]);
  const int left = tile.keys - c;
  if (left >= kLanes) return load_as(bias.data, bias.dtype, at);
  return left > 0 ? load_part_as(bias.data, bias.dtype, at, left) : zeros();
}

UNDIVIDED_INLINE IntVec mask_at(const Tile& tile, const Plane& mask, int r, int c) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const int64_t at = tile.sequence.b * mask.b + tile.h * mask.h + (tile.i0 + r) * mask.m + (tile.n0 + c) * mask.n;
  const uint8_t* p = static_cast<const uint8_t*>(mask.data) + at;
  Bytes bytes{};
  const int left = tile.keys - c;
  if (mask.n == 0) {
    bytes = bytes + *p;
  } else if (left >= kLanes) {
    std::memcpy(&bytes, p, sizeof bytes);
  } else {
    for (int lane = 0; lane < left; ++lane) bytes[lane] = p[lane];
  }
  return __builtin_convertvector(bytes, IntVec) != 0;
}

// Whatever is more than a scale: applied to the columns of row r, so that `factor` is 1 afterwards.
inline void adjust_row(const Tile& tile, int r, const Columns& columns) {
  const AttentionCall& call = *tile.call;
  float* s = tile.s + r * tile.row;
  const float* distance = tile.distance == nullptr ? nullptr : tile.distance + (tile.rows - 1 - r);
  const float scale2 = call.scale * kLog2E;
  const bool cap = call.softcap != 0.0F, bias = call.bias.data != nullptr, mask = call.mask.data != nullptr;
  const float inner = cap ? call.scale / call.softcap : 0.0F;
  for (int c = columns.begin; c < columns.end; c += kLanes) {
    Vec x = load(s + c);
    if (cap) {
      Vec slope;
      x = capped(x * inner, call.softcap, &slope) * kLog2E;
      if (tile.slope != nullptr) store(tile.slope + r * tile.row + c, slope);
    } else {
      x = x * scale2;
    }
    if (distance != nullptr) x = x + load(distance + c);
    if (bias) {
      // Many write the lowest float for -inf, and a row of nothing else gives the mean: it must stay finite.
      const Vec b = bias_at(tile, call.bias, r, c), low = broadcast(-0x1.fffffep127F);
      x = x + select(b < low, b, max(low, b * kLog2E));  // in this order NaN stays NaN
    }
    if (mask) x = select(mask_at(tile, call.mask, r, c), x, broadcast(-kInfinity));
    store(s + c, x);
  }
}

inline bool is_whole(const Tile& tile) {
  const Range first = keys_seen(*tile.call, tile.sequence, tile.i0, tile.i0);
  const Range last = keys_seen(*tile.call, tile.sequence, tile.i0 + tile.rows - 1, tile.i0 + tile.rows - 1);
  return last.low <= tile.n0 && first.high >= tile.n0 + tile.keys && tile.keys % kLanes == 0;
}

// The columns that row r sees, in the vectors that its group of rows works on.
inline Columns columns_of_row(const Tile& tile, int r, const Span& group) {
  const Range keys = keys_seen(*tile.call, tile.sequence, tile.i0 + r, tile.i0 + r);
  const int64_t low = smaller(larger(keys.low - tile.n0, group.column), group.column_end);
  const int64_t high = larger(smaller(keys.high - tile.n0, group.column_end), low);
  return {static_cast<int>(low), static_cast<int>(high), group.column, group.column_end};
}

// The vectors of columns that each group of kGroup rows of the tile works on; `depth` is that of q k^T, in words.
inline void groups_of(const Tile& tile, int depth, Span* groups) {
  for (int r = 0, g = 0; r < tile.rows; r += kGroup, ++g) {
    const int last = r + kGroup < tile.rows ? r + kGroup - 1 : tile.rows - 1;
    const Range keys = keys_seen(*tile.call, tile.sequence, tile.i0 + r, tile.i0 + last);
    const int64_t low = larger(keys.low - tile.n0, 0), high = smaller(keys.high - tile.n0, tile.keys);
    groups[g] = {0, 0, 0, depth};
    if (low >= high) continue;
    groups[g].column = static_cast<int>(round_down(low, kLanes));
    groups[g].column_end = static_cast<int>(round_up(high, kLanes));
  }
}

// -inf in the columns that belong to the row's whole vectors but are not seen.
inline void hide_edges(const Tile& tile, int r, const Columns& columns) {
  float* s = tile.s + r * tile.row;
  IntVec lane;
  for (int x = 0; x < kLanes; ++x) lane[x] = x;
  auto hide = [&](int c) {
    const IntVec seen = (lane + c >= columns.low) & (lane + c < columns.high);
    store(s + c, select(seen, load(s + c), broadcast(-kInfinity)));
  };
  for (int c = columns.begin; c < columns.low; c += kLanes) hide(c);
  const int last = columns.high / kLanes * kLanes;
  for (int c = last > columns.begin ? last : columns.begin; c < columns.end; c += kLanes) hide(c);
}

// The scores of row r as the softmax takes them.
inline void finish_row(const Tile& tile, int r, const Columns& columns) {
  if (!tile.plain) adjust_row(tile, r, columns);
  hide_edges(tile, r, columns);
}

}  // namespace undivided::UNDIVIDED_VARIANT
