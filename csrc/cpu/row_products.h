// Products of a few rows with keys or values that are read where they lie: nothing is packed, and each row of memory is
// read once for several rows of the left side. Words are those of matmul_tile.h; a step is one vector of them.
#pragma once

#include <cstring>
#include <type_traits>

#include "blocks.h"
#include "pack.h"
#include "prefetch.h"

namespace undivided::UNDIVIDED_VARIANT {

// bfloat16 that is multiplied as floats is read in blocks (blocks.h): one load gives two vectors, the even columns and the
// odd ones.
template <class T, class Word>
constexpr bool kInBlocks = kEvenOdd<T> && kPerWord<Word> == 1;
template <class T, class Word>
constexpr int kStep = kInBlocks<T, Word> ? kBlock : kLanes * kPerWord<Word>;  // in elements
template <class T, class Word>
constexpr int kStepWords = kStep<T, Word> / kPerWord<Word>;

// What rows of probabilities hold: one element for each key, next to each other.
template <class Word>
struct Weights {
  using Element = float;
};
template <>
struct Weights<Pair> {
  using Element = bfloat16;
};

// The kStep elements from p on, as words; the first n of them, n < kStep, and 0.
template <class T, class Word>
UNDIVIDED_INLINE auto step_at(const T* p) {
  if constexpr (kInBlocks<T, Word>) return load_block(p);
  else if constexpr (kPerWord<Word> == 2) return load(reinterpret_cast<const float*>(p));
  else return load(p);
}
template <class T, class Word>
UNDIVIDED_INLINE auto part_at(const T* p, int n) {
  if constexpr (kInBlocks<T, Word>) return load_some(p, n);
  else return of_bits(words_at<Word>(p, 0, n));
}

// A row as steps of words, for the left side: `stride` words, a whole number of steps.
template <class T, class Word>
void pack_steps(const Source<T>& source, Word* dst, int stride) {
  if constexpr (kInBlocks<T, Word>) {
    for (int r = 0; r < source.count; ++r, dst += stride) {
      for (int c = 0; c < stride; c += kBlock) {
        const int left = source.columns - c;
        const Block block = load_some(source.at(r) + c, left < kBlock ? left : kBlock);
        store(dst + c, block.a);
        store(dst + c + kLanes, block.b);
      }
    }
  } else {
    pack_rows(source, dst, stride);
  }
}
template <class T, class Word>
UNDIVIDED_INLINE auto packed_step_at(const Word* p) {
  if constexpr (kInBlocks<T, Word>) return Block{load(p), load(p + kLanes)};
  else return load_words(p);
}

// sum + a b, lane by lane; lanes of words.
template <class Word>
UNDIVIDED_INLINE Vec multiply_lanes(Block a, Block b, Vec sum) {
  return sum + a.a * b.a + a.b * b.b;
}
template <class Word>
UNDIVIDED_INLINE Vec multiply_lanes(Vec a, Vec b, Vec sum) {
#if defined(__AVX512BF16__)
  if constexpr (kPerWord<Word> == 2) return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
  return sum + a * b;
}

// ---- sums across lanes, of several vectors at once ----

// Lanes of a, and where kDistance is a bit of their number of b, each with the lane kDistance away added.
template <int kDistance>
UNDIVIDED_INLINE Vec add_across(Vec a, Vec b) {
  IntVec own{}, other{};
  for (int x = 0; x < kLanes; ++x) {
    const bool second = (x & kDistance) != 0;
    own[x] = second ? kLanes + x : x;
    other[x] = second ? kLanes + x - kDistance : x + kDistance;
  }
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}

constexpr int kQuad = 4;  // lanes of 128 bits

// v[i] becomes v[i] and v[i + kDistance] added across, for all i without that bit.
template <int kDistance, int kCount>
UNDIVIDED_INLINE void fold(Vec* v) {
  unrolled<kCount>([&](auto i) UNDIVIDED_INLINE_LAMBDA {
    if constexpr ((i.value & kDistance) == 0) v[i.value] = add_across<kDistance>(v[i.value], v[i.value + kDistance]);
  });
}

template <int kDistance, int kCount>
UNDIVIDED_INLINE void fold_from(Vec* v) {
  if constexpr (kDistance < kLanes) {
    if constexpr (kDistance < kCount) {
      fold<kDistance, kCount>(v);
    } else {
      IntVec other{};
      for (int x = 0; x < kLanes; ++x) other[x] = x ^ kDistance;
      v[0] += __builtin_shuffle(v[0], other);
    }
    fold_from<2 * kDistance, kCount>(v);
  }
}

// Lane x of the result is the sum of all lanes of v[x % kCount], of at least a quad of vectors, in an order that does not
// depend on their number.
template <int kCount>
UNDIVIDED_INLINE Vec sums_of(Vec* v) {
  fold<2, kCount>(v);
  fold<1, kCount>(v);
  fold_from<kQuad, kCount>(v);
  return v[0];
}

// Quad r of v to row r, of kRows rows.
template <int kRows>
UNDIVIDED_INLINE void store_quads(float* p, [[maybe_unused]] int64_t row, Vec v) {
#if defined(__AVX512F__)
  unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
    _mm_storeu_ps(p + r.value * row, _mm512_extractf32x4_ps((__m512)v, r.value));
  });
#elif defined(__AVX2__)
  unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
    _mm_storeu_ps(p + r.value * row, _mm256_extractf128_ps((__m256)v, r.value));
  });
#else
  store(p, v);
#endif
}

// ---- scores ----

// Rows of words, padded with 0 to whole vectors, against rows of T, `stride` apart and `columns` wide.
template <class T, class Word>
struct Keys {
  const Word* q;
  int64_t q_row;
  const T* k;
  int64_t stride;
  int columns;
};

// Lane r * kQuad + i is q_r . k_i, for kRows rows and the kQuad keys from `first` on; a row's bits do not depend on the
// rows beside it. More keys at a time would be more sums that need not wait for themselves, but memory is then read from
// more places at once: one row is 1.1 to 1.2 times as fast as with 16 keys, on Emerald Rapids. Unless kWhole, keys end at
// `count`; rows end at `rows`: in place of those beyond, the last one is read again. kAhead: the keys that come next are
// brought into the second-level cache on the way, a line with each step, so that reading and computing overlap: 1.1 to
// 1.9 times as fast where keys come from memory; all at once, before the sums, they gain nothing.
template <class T, class Word, int kRows, bool kWhole, bool kAhead = false>
UNDIVIDED_INLINE Vec scores_of(const Keys<T, Word>& on, int row, int rows, int first, int count) {
  const Word* q[kRows];
  unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
    q[r.value] = on.q + (row + r.value < rows ? row + r.value : rows - 1) * on.q_row;
  });
  const T* keys[kQuad];
  unrolled<kQuad>([&](auto i) UNDIVIDED_INLINE_LAMBDA {
    const int key = kWhole || first + i.value < count ? first + i.value : count - 1;
    keys[i.value] = on.k + key * on.stride;
  });
  Vec sum[kRows * kQuad] = {};
  auto step = [&](int c, auto read) UNDIVIDED_INLINE_LAMBDA {
    decltype(packed_step_at<T, Word>(q[0])) left[kRows];
    unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
      left[r.value] = packed_step_at<T, Word>(q[r.value] + c / kPerWord<Word>);
    });
    unrolled<kQuad>([&](auto i) UNDIVIDED_INLINE_LAMBDA {
      const auto right = read(keys[i.value] + c);
      if constexpr (kAhead) __builtin_prefetch(keys[i.value] + kQuad * on.stride + c, 0, 2);
      unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
        Vec& total = sum[r.value * kQuad + i.value];
        total = multiply_lanes<Word>(left[r.value], right, total);
      });
    });
  };
  int c = 0;
  for (; c + kStep<T, Word> <= on.columns; c += kStep<T, Word>) {
    step(c, [](const T* p) UNDIVIDED_INLINE_LAMBDA { return step_at<T, Word>(p); });
  }
  const int left = on.columns - c;
  if (left > 0) step(c, [left](const T* p) UNDIVIDED_INLINE_LAMBDA { return part_at<T, Word>(p, left); });
  return sums_of<kRows * kQuad>(sum);
}

constexpr int kTall = kLanes / kQuad;  // rows at a time

template <class T, class Word, int kRows, bool kWhole, bool kAhead>
UNDIVIDED_INLINE void scores_of_rows(const Keys<T, Word>& on, int row, int rows, int first, int count, float* s,
                                     int64_t s_row, Ahead& ahead) {
  for (int c = first; c < first + kLanes && (kWhole || c < count); c += kQuad) {
    ahead.bring();
    store_quads<kRows>(s + row * s_row + c, s_row, scores_of<T, Word, kRows, kWhole, kAhead>(on, row, rows, c, count));
  }
}

// The scores of the kLanes keys from `first` on, tall groups of rows first; the last three count as four.
template <class T, class Word, bool kWhole, bool kAhead>
UNDIVIDED_INLINE void scores_of_keys(const Keys<T, Word>& on, int rows, int first, int count, float* s, int64_t s_row,
                                     Ahead& ahead) {
  int r = 0;
  auto group = [&](auto size, auto next) UNDIVIDED_INLINE_LAMBDA {
    scores_of_rows<T, Word, size.value, kWhole, next.value>(on, r, rows, first, count, s, s_row, ahead);
    r += size.value;
  };
  auto take = [&](auto next) UNDIVIDED_INLINE_LAMBDA {
    if (rows - r > kTall / 2) return group(std::integral_constant<int, kTall>(), next);
    if (rows - r > 1) return group(std::integral_constant<int, (kTall > 2 ? 2 : 1)>(), next);
    group(std::integral_constant<int, 1>(), next);
  };
  if (r < rows) take(std::bool_constant<kAhead>());
  while (r < rows) take(std::false_type());
}

// s[r][c] = q_r . k_c for `rows` rows and `count` keys, and anything up to a whole vector of s and to a fourth row.
template <class T, class Word, bool kAhead = false>
__attribute__((noinline)) void row_scores(const Keys<T, Word>& on, int rows, int count, float* s, int64_t s_row,
                                          Ahead ahead) {
  const int groups = (rows + kTall - 1) / kTall;
  ahead.spread(count, (count + kLanes - 1) / kLanes * groups * (kLanes / kQuad));  // so often it is asked
  for (int c = 0; c < count; c += kLanes) {
    if (c + kLanes <= count) {
      scores_of_keys<T, Word, true, kAhead>(on, rows, c, count, s, s_row, ahead);
    } else {
      scores_of_keys<T, Word, false, kAhead>(on, rows, c, count, s, s_row, ahead);
    }
  }
}

// ---- sums over values ----

// `count` rows of T, `stride` apart and `columns` wide.
template <class T>
struct Values {
  const T* v;
  int64_t stride;
  int count, columns;
};

// A panel of kPanel columns of kPerWord rows, from v on, as right side of multiply_add: words of the rows side by side.
// Of two rows the columns of each 128 bits are split: first all lower fours, then all upper ones. Blocks have first the
// even columns, then the odd ones (see plain_order).
template <class T, class Word, bool kWhole>
UNDIVIDED_INLINE void panel_at(const T* v, [[maybe_unused]] int64_t stride, [[maybe_unused]] int rows, int columns,
                               Vec* right) {
  using Step = decltype(step_at<T, Word>(v));
  constexpr int kSize = kStep<T, Word>;
  auto read = [&](const T* p, int column) UNDIVIDED_INLINE_LAMBDA {
    if (kWhole || columns - column >= kSize) return step_at<T, Word>(p + column);
    return columns > column ? part_at<T, Word>(p + column, columns - column) : Step{};
  };
  unrolled<kPanel / kSize>([&](auto i) UNDIVIDED_INLINE_LAMBDA {
    const Step first = read(v, i.value * kSize);
#if defined(__AVX512BF16__)
    if constexpr (kPerWord<Word> == 2) {
      const Vec second = rows == 2 ? read(v + stride, i.value * kSize) : zeros();
      right[2 * i.value] = (Vec)_mm512_unpacklo_epi16((__m512i)first, (__m512i)second);
      right[2 * i.value + 1] = (Vec)_mm512_unpackhi_epi16((__m512i)first, (__m512i)second);
      return;
    }
#endif
    if constexpr (kInBlocks<T, Word>) {
      right[2 * i.value] = first.a;
      right[2 * i.value + 1] = first.b;
    } else {
      right[i.value] = first;
    }
  });
}

// The word of weights at p. What stands behind the last weight meets a row of zeros.
UNDIVIDED_INLINE float weight_at(const float* p) { return *p; }
UNDIVIDED_INLINE Pair weight_at(const bfloat16* p) {
  Pair word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// acc[r] += sum over c of p[r][c] v_c, for kRows rows and kPanel columns. Few rows sum up in several sets, so that
// multiplications need not wait for one another.
template <class T, class Word, int kRows, bool kWhole, bool kBring>
__attribute__((noinline)) void add_panel(const typename Weights<Word>::Element* p, int64_t p_row, const Values<T>& on,
                                         float* acc, int64_t acc_row, Ahead& next) {
  Ahead ahead = next;
  constexpr int kSets = kRows * kVectors >= 8 ? 1 : 8 / (kRows * kVectors), kPer = kPerWord<Word>;
  Vec sum[kSets][kRows][kVectors] = {};
  auto step = [&](int c, int rows, Vec(&into)[kRows][kVectors]) UNDIVIDED_INLINE_LAMBDA {
    Vec right[kVectors];
    if constexpr (kBring) ahead.bring();
    panel_at<T, Word, kWhole>(on.v + c * on.stride, on.stride, rows, on.columns, right);
    unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
      const Word left = weight_at(p + r.value * p_row + c);
      unrolled<kVectors>([&](auto x) UNDIVIDED_INLINE_LAMBDA {
        into[r.value][x.value] = multiply_add(left, right[x.value], into[r.value][x.value]);
      });
    });
  };
  int c = 0;
  for (; c + kSets * kPer <= on.count; c += kSets * kPer) {
    unrolled<kSets>([&](auto set) UNDIVIDED_INLINE_LAMBDA { step(c + set.value * kPer, kPer, sum[set.value]); });
  }
  for (; c < on.count; c += kPer) step(c, on.count - c < kPer ? 1 : kPer, sum[0]);
  next = ahead;
  unrolled<kRows>([&](auto r) UNDIVIDED_INLINE_LAMBDA {
    unrolled<kVectors>([&](auto x) UNDIVIDED_INLINE_LAMBDA {
      if (!kWhole && x.value * kLanes / kStep<T, Word> * kStep<T, Word> >= on.columns) return;
      float* out = acc + r.value * acc_row + x.value * kLanes;
      Vec total = load(out) + sum[0][r.value][x.value];
      for (int set = 1; set < kSets; ++set) total += sum[set][r.value][x.value];
      store(out, total);
    });
  });
}

template <class T, class Word, int kRows>
UNDIVIDED_INLINE void add_rows(const typename Weights<Word>::Element* p, int64_t p_row, const Values<T>& on, float* acc,
                               int64_t acc_row, Ahead& ahead) {
  const bool bring = ahead.lines > 0;
  for (int d = 0; d < on.columns; d += kPanel) {
    const Values<T> panel{on.v + d, on.stride, on.count, on.columns - d};
    const bool whole = panel.columns >= kPanel;
    auto add = whole ? bring ? add_panel<T, Word, kRows, true, true> : add_panel<T, Word, kRows, true, false>
                     : bring ? add_panel<T, Word, kRows, false, true> : add_panel<T, Word, kRows, false, false>;
    add(p, p_row, panel, acc + d, acc_row, ahead);
  }
}

// acc[r] += sum over c of p[r][c] v_c for `rows` rows; acc has rows of whole steps, in the order of panel_at.
template <class T, class Word>
void add_values(int rows, const typename Weights<Word>::Element* p, int64_t p_row, const Values<T>& on, float* acc,
                int64_t acc_row, Ahead ahead) {
  const int64_t panels = (on.columns + kPanel - 1) / kPanel, groups = rows / 4 + rows % 4 / 2 + rows % 2;
  ahead.spread(on.count, groups * panels * ((on.count + kPerWord<Word> - 1) / kPerWord<Word>));
  int r = 0;
  for (; r + 4 <= rows; r += 4) add_rows<T, Word, 4>(p + r * p_row, p_row, on, acc + r * acc_row, acc_row, ahead);
  for (; r + 2 <= rows; r += 2) add_rows<T, Word, 2>(p + r * p_row, p_row, on, acc + r * acc_row, acc_row, ahead);
  if (r < rows) add_rows<T, Word, 1>(p + r * p_row, p_row, on, acc + r * acc_row, acc_row, ahead);
}

// A row of sums, `width` floats in whole steps, from the order of panel_at to that of the columns.
template <class T, class Word>
UNDIVIDED_INLINE void plain_order(float* acc, int64_t width) {
  if constexpr (kStep<T, Word> == kBlock) {
    IntVec first{}, second{};  // where the columns of the two vectors of a step stand
    for (int x = 0; x < kLanes; ++x) {
      first[x] = kInBlocks<T, Word> ? x % 2 * kLanes + x / 2
                                    : x / kQuad % 2 * kLanes + x / (2 * kQuad) * kQuad + x % kQuad;
      second[x] = first[x] + kLanes / 2;
    }
    for (float* end = acc + width; acc < end; acc += kBlock) {
      const Vec lower = load(acc), upper = load(acc + kLanes);
      store(acc, __builtin_shuffle(lower, upper, first));
      store(acc + kLanes, __builtin_shuffle(lower, upper, second));
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
