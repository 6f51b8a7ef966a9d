// Few queries, as in decoding: packing the keys and values for them would cost more than the products. Both products
// read keys and values where they lie, in float.
#pragma once

#include "attention_poison.h"
#include "pack.h"

namespace undivided::UNDIVIDED_VARIANT {

// Queries of all heads that share a key head. Each costs about a third of packing.
constexpr int64_t kFewRows = 3;

template <class T>
inline const T* key_row(const Tile& tile, const Rows& rows, int c) {
  const int64_t head_kv = tile.h / (tile.call->nheads / tile.call->nheads_kv);
  return row_of<T>(rows, tile.sequence.b, head_kv, tile.sequence.first_k + tile.n0 + c);
}

// Rows of one head lie far apart, where no prefetcher of the processor follows. A prefetch may reach past the end.
constexpr int64_t kAhead = 12;
template <class T>
UNDIVIDED_INLINE void prefetch_row(const T* p, int columns) {
  const char* bytes = reinterpret_cast<const char*>(p);
  for (int at = 0; at < columns * static_cast<int>(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}

// s = q k^T in the columns of the groups.
template <class T>
void few_scores(const Tile& tile, const Span* groups) {
  const AttentionCall& call = *tile.call;
  const int columns = static_cast<int>(call.head_dim);
  for (int r = 0; r < tile.rows; ++r) {
    const T* q = row_of<T>(call.q, tile.sequence.b, tile.h, tile.sequence.first_q + tile.i0 + r);
    const Span& group = groups[r / kGroup];
    const int end = static_cast<int>(smaller(group.column_end, tile.keys));
    const T* k = key_row<T>(tile, call.k, 0);
    for (int c = group.column; c < end; ++c) {
      prefetch_row(k + (c + kAhead) * call.k.s, columns);
      tile.s[r * tile.row + c] = dot(q, k + c * call.k.s, columns);
    }
  }
}

UNDIVIDED_INLINE float weight_at(const float* p, int c) { return p[c]; }
#if defined(__AVX512BF16__)
UNDIVIDED_INLINE float weight_at(const Pair* p, int c) { return element(reinterpret_cast<const bfloat16*>(p) + c); }
#endif

// acc = acc * shrink + p v, or p v where shrink is null. p has rows of `row` words.
template <class T, class Word>
void few_sums(const Tile& tile, const Word* p, int row, const Span* groups, Sum acc, const float* shrink) {
  const AttentionCall& call = *tile.call;
  const T* v = key_row<T>(tile, call.v, 0);
  for (int r = 0; r < tile.rows; ++r) {
    const Span& group = groups[r / kGroup];
    const int end = static_cast<int>(smaller(group.column_end, tile.keys));
    for (int d = 0; d < call.head_dim_v; d += kPanel) {
      Vec sum[kVectors];
      const int left = static_cast<int>(call.head_dim_v) - d;
      float* out = acc.data + r * acc.row + d;
      for (int x = 0; x < kVectors; ++x) {
        sum[x] = shrink == nullptr || x * kLanes >= left ? zeros() : load(out + x * kLanes) * shrink[r];
      }
      for (int c = group.column; c < end; ++c) {
        const float weight = weight_at(p + r * row, c);
        if (weight == 0.0F && !weighs(tile, r, c)) continue;  // 0 * NaN would let a hidden value in
        const T* value = v + c * call.v.s + d;
        prefetch_row(value + kAhead * call.v.s, left < kPanel ? left : kPanel);
        for (int x = 0; x < kVectors; ++x) {
          const int rest = left - x * kLanes;
          if (rest >= kLanes) sum[x] += load(value + x * kLanes) * weight;
          if (rest > 0 && rest < kLanes) sum[x] += load_part(value + x * kLanes, rest) * weight;
        }
      }
      for (int x = 0; x < kVectors && x * kLanes < left; ++x) store(out + x * kLanes, sum[x]);
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
