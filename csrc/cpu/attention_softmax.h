// One step of the running softmax (Dao et al. 2022, section 3.1): the probabilities of one row of a tile, under a top
// that need not be the largest score. Floating point loses nothing as long as the two are not too far apart, so the top
// is that of the first vector that the row sees something of, and the largest score is looked for only when a weight
// exceeds kMostWeight (or is NaN).
#pragma once

#include <cmath>

#include "attention_scores.h"
#include "dropout.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr float kMostWeight = 0x1p20F;  // of a probability under a top that is too low
// From a top of this size on, what it was rounded by tells against the unrounded products of scores and factor; from 2^31
// on by more than a float has exponents.
constexpr float kRoundedTop = 0x1p24F;

inline float largest_score(const Tile& tile, int r, const Span& columns) {
  const float* s = tile.s + r * tile.row;
  Vec best = broadcast(-kInfinity);
  for (int c = columns.column; c < columns.column_end; c += kLanes) best = max(load(s + c), best);
  return largest(best) * tile.factor;
}

// p = 2^(s - base) in words; returns the sum, before dropout. `dropout` is the state of the row's counter.
template <class Word, bool kDropout>
UNDIVIDED_INLINE Vec weigh_columns(const Tile& tile, int r, const Span& columns, Vec base, Word* p, uint32_t dropout) {
  const AttentionCall& call = *tile.call;
  const float* s = tile.s + r * tile.row;
  const Vec factor = broadcast(tile.factor);
  Vec total[2] = {};
  auto weight = [&](int c, int which) UNDIVIDED_INLINE_LAMBDA {
    const Vec weights = exp2<kExp2Degree<Word>>(load(s + c) * factor - base);
    total[which] += weights;
    if (!kDropout) return weights;
    return select(kept(dropout, call.threshold, tile.n0 + c), weights * call.keep_scale, zeros());
  };
  int c = columns.column;
  // Even vectors of the tile in one sum, odd ones in the other, wherever the columns begin.
  if (c / kLanes % 2 != 0 && c < columns.column_end) {
    store_as_words(p + c / kPerWord<Word>, weight(c, 1));
    c += kLanes;
  }
  for (; c + 2 * kLanes <= columns.column_end; c += 2 * kLanes) {
    const Vec low = weight(c, 0), high = weight(c + kLanes, 1);
    store_as_words(p + c / kPerWord<Word>, low, high);
  }
  if (c < columns.column_end) store_as_words(p + c / kPerWord<Word>, weight(c, 0));
  return total[0] + total[1];
}

template <class Word>
UNDIVIDED_INLINE Vec weigh(const Tile& tile, int r, const Span& columns, float top, Word* p) {
  // A row that has seen nothing yet has top -inf, and -inf - -inf would be NaN.
  const Vec base = broadcast(top == -kInfinity ? 0.0F : top);
  const AttentionCall& call = *tile.call;
  if (!call.dropout) return weigh_columns<Word, false>(tile, r, columns, base, p, 0);
  const uint32_t row = dropout_row(call.state, tile.sequence.b * call.nheads + tile.h, tile.i0 + r);
  return weigh_columns<Word, true>(tile, r, columns, base, p, row);
}

inline bool is_rounded(float top) { return std::fabs(top) > kRoundedTop && std::fabs(top) < kInfinity; }

// `softmax_row` with each score multiplied by the factor, and rounded, before the top is taken off.
template <class Word>
__attribute__((noinline)) float softmax_rounded_row(Tile tile, int r, const Span& columns, Word* p, float* top,
                                                    float* total) {
  float* s = tile.s + r * tile.row;
  for (int c = columns.column; c < columns.column_end; c += kLanes) store(s + c, load(s + c) * tile.factor);
  tile.factor = 1.0F;
  const float old = *top, best = largest_score(tile, r, columns);
  *top = best > old ? best : old;
  const float shrink = std::exp2(old - *top);
  store(total, load(total) * shrink + weigh(tile, r, columns, *top, p));
  return shrink;
}

// Row r of the tile: its probabilities go to p, their sum is added to total (kLanes,), and top may rise. Returns what
// earlier sums over the values must be multiplied by; total already is.
template <class Word>
UNDIVIDED_INLINE float softmax_row(const Tile& tile, int r, const Span& columns, Word* p, float* top, float* total) {
  float base = *top, shrink = 1.0F;
  for (int c = columns.column; base == -kInfinity && c < columns.column_end; c += kLanes) {
    base = largest(load(tile.s + r * tile.row + c)) * tile.factor;
  }
  if (__builtin_expect(is_rounded(base) && tile.factor != 1.0F, 0)) {
    return softmax_rounded_row(tile, r, columns, p, top, total);
  }
  Vec added = weigh(tile, r, columns, base, p);
  if (__builtin_expect(any(added > kMostWeight) || any(added != added), 0)) {
    const float old = base, best = largest_score(tile, r, columns);
    base = best > old ? best : old;
    if (is_rounded(base) && tile.factor != 1.0F) return softmax_rounded_row(tile, r, columns, p, top, total);
    shrink = std::exp2(old - base);
    added = weigh(tile, r, columns, base, p);
  }
  store(total, load(total) * shrink + added);
  *top = base;
  return shrink;
}

}  // namespace undivided::UNDIVIDED_VARIANT
