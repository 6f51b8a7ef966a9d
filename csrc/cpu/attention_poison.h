// NaN and infinity in values. Products are made with 0 in their place, since 0 * NaN would carry a value that a query
// does not see into its row; what a query does see is added afterwards. A slow path: values are finite as a rule.
#pragma once

#include "attention_scores.h"
#include "dropout.h"

namespace undivided::UNDIVIDED_VARIANT {

template <class T>
UNDIVIDED_INLINE float element(const T* p) {
  return load_part(p, 1)[0];
}

UNDIVIDED_INLINE bool is_finite(float x) { return x - x == 0.0F; }

// Whether row r of a tile, with its scores finished, weighs the key in column c.
inline bool weighs(const Tile& tile, int r, int c) {
  const AttentionCall& call = *tile.call;
  const Range keys = keys_seen(call, tile.sequence, tile.i0 + r, tile.i0 + r);
  if (tile.n0 + c < keys.low || tile.n0 + c >= keys.high || tile.s[r * tile.row + c] == -kInfinity) return false;
  if (!call.dropout) return true;
  const uint32_t row = dropout_row(call.state, tile.sequence.b * call.nheads + tile.h, tile.i0 + r);
  return kept(row, call.threshold, tile.n0 + c)[0] != 0;
}

// poison (rows, width): for each row of the tile the sum of the values that are not finite and that it weighs.
template <class T>
void gather_poison(const Tile& tile, float* poison, int width) {
  const AttentionCall& call = *tile.call;
  std::memset(poison, 0, tile.rows * width * sizeof(float));
  const int64_t head_kv = tile.h / (call.nheads / call.nheads_kv);
  for (int c = 0; c < tile.keys; ++c) {
    const T* v = row_of<T>(call.v, tile.sequence.b, head_kv, tile.sequence.first_k + tile.n0 + c);
    bool any = false;
    for (int d = 0; d < call.head_dim_v; ++d) any |= !is_finite(element(v + d));
    for (int r = 0; any && r < tile.rows; ++r) {
      if (!weighs(tile, r, c)) continue;
      for (int d = 0; d < call.head_dim_v; ++d) {
        const float x = element(v + d);
        if (!is_finite(x)) poison[r * width + d] += x;
      }
    }
  }
}

inline void add_poison(int rows, const float* poison, Sum acc, int width) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < width; c += kLanes) {
      store(acc.data + r * acc.row + c, load(acc.data + r * acc.row + c) + load(poison + r * width + c));
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
