// The product of two small matrices in registers. a is read one word at a time, by any strides; b lies in panels of
// kPanel columns, so that its rows stream. A word is one float, or on processors that multiply pairs of bfloat16 two
// of them, neighbours along the dimension that is summed over.
#pragma once

#include "blocks.h"
#include "prefetch.h"

namespace undivided::UNDIVIDED_VARIANT {

// Two bfloat16.
struct Pair {
  uint32_t bits;
};

template <class Word>
constexpr int kPerWord = 1;
template <>
constexpr int kPerWord<Pair> = 2;

// kGroup * kVectors accumulators, kVectors of b and one of a fill the registers: 32 with AVX-512, otherwise 16.
constexpr int kGroup = 6;
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kPanel = kVectors * kLanes;

template <int kIndex>
struct Index {
  static constexpr int value = kIndex;
};

// step(Index<0>), ..., step(Index<kCount - 1>), written out.
template <int kCount, int kFrom = 0, class F>
UNDIVIDED_INLINE void unrolled(F&& step) {
  if constexpr (kFrom < kCount) {
    step(Index<kFrom>{});
    unrolled<kCount, kFrom + 1>(step);
  }
}

UNDIVIDED_INLINE Vec multiply_add(float a, Vec b, Vec sum) { return sum + broadcast(a) * b; }
UNDIVIDED_INLINE Vec load_words(const float* p) { return load(p); }
#if defined(__AVX512BF16__)
UNDIVIDED_INLINE Vec multiply_add(Pair a, Vec b, Vec sum) {
  const __m512i both = _mm512_set1_epi32(static_cast<int>(a.bits));
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)both, (__m512bh)b);
}
UNDIVIDED_INLINE Vec load_words(const Pair* p) { return load(reinterpret_cast<const float*>(p)); }
#endif

// Neighbours of a row as words.
UNDIVIDED_INLINE void store_as_words(float* p, Vec x) { store(p, x); }
UNDIVIDED_INLINE void store_as_words(float* p, Vec low, Vec high) {
  store(p, low);
  store(p + kLanes, high);
}
#if defined(__AVX512BF16__)
UNDIVIDED_INLINE void store_as_words(Pair* p, Vec x) { store(reinterpret_cast<bfloat16*>(p), x); }
UNDIVIDED_INLINE void store_as_words(Pair* p, Vec low, Vec high) {
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  std::memcpy(p, &both, sizeof both);
}
#endif

template <class Word>
struct Left {
  const Word* data;
  int64_t row, step;  // strides, in words
};

// panel p is (depth, kPanel) words at data + p * depth * kPanel.
template <class Word>
struct Right {
  const Word* data;
  int64_t depth;
};

struct Sum {
  float* data;
  int64_t row;
};

// c = a b, or c * shrink (by row) + a b: kRows x (kWide * kLanes), over `depth` words. a_row, a_step and c_row are
// strides. Plain arguments: a call takes some twenty cycles less than with structures, of about 800 in all. c comes last:
// a long sum that is made of the sums of its parts has a third of the error of one made term by term (2,048 queries).
template <class Word, int kRows, int kWide>
__attribute__((noinline)) void multiply(const Word* a, int64_t a_row, int64_t a_step, const Word* b, int64_t depth,
                                        float* c, int64_t c_row, const float* shrink) {
  Vec sum[kRows][kWide];
  unrolled<kRows>([&](auto r) {
    unrolled<kWide>([&](auto v) { sum[r.value][v.value] = zeros(); });
  });
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += kPanel) {
    Vec right[kWide];
    unrolled<kWide>([&](auto v) { right[v.value] = load_words(b + v.value * kLanes); });
    unrolled<kRows>([&](auto r) {
      const Word left = a[r.value * a_row];
      unrolled<kWide>([&](auto v) {
        sum[r.value][v.value] = multiply_add(left, right[v.value], sum[r.value][v.value]);
      });
    });
  }
  unrolled<kRows>([&](auto r) {
    const Vec before = broadcast(shrink == nullptr ? 0.0F : shrink[r.value]);
    unrolled<kWide>([&](auto v) {
      float* to = c + r.value * c_row + v.value * kLanes;
      store(to, shrink == nullptr ? sum[r.value][v.value] : load(to) * before + sum[r.value][v.value]);
    });
  });
}

template <class Word>
using Multiply = void (*)(const Word*, int64_t, int64_t, const Word*, int64_t, float*, int64_t, const float*);

template <class Word, int kRows>
UNDIVIDED_INLINE Multiply<Word> multiply_of_width(int wide) {
#if defined(__AVX512F__)
  if (wide == 4) return multiply<Word, kRows, kVectors>;
  if (wide == 3) return multiply<Word, kRows, kVectors - 1>;
#endif
  return wide == 2 ? multiply<Word, kRows, 2> : multiply<Word, kRows, 1>;
}

template <class Word>
inline Multiply<Word> multiply_of(int rows, int wide) {
  switch (rows) {
    case 1: return multiply_of_width<Word, 1>(wide);
    case 2: return multiply_of_width<Word, 2>(wide);
    case 3: return multiply_of_width<Word, 3>(wide);
    case 4: return multiply_of_width<Word, 4>(wide);
    case 5: return multiply_of_width<Word, 5>(wide);
    default: return multiply_of_width<Word, 6>(wide);
  }
}

// What one group of rows of a product needs: columns (whole vectors) and a part of the depth (whole words).
struct Span {
  int column, column_end;
  int word, word_end;
};

constexpr float kNoShrink[kGroup] = {1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 1.0F};

// c[:, span] (+)= a b for groups of kGroup rows; spans has one element for each. shrink is by row; null starts from 0,
// also where the depth is empty. What comes next is brought on the way.
template <class Word>
void product(int rows, Left<Word> a, Right<Word> b, Sum c, const Span* spans, int columns, const float* shrink,
             LinesAhead& ahead) {
  for (int panel = 0; panel < columns; panel += kPanel) {
    for (int row = 0, g = 0; row < rows; row += kGroup, ++g) {
      const Span& span = spans[g];
      const int begin = span.column > panel ? span.column : panel;
      const int end = span.column_end < panel + kPanel ? span.column_end : panel + kPanel;
      const int depth = span.word_end - span.word;
      if (begin >= end || (depth <= 0 && shrink != nullptr)) continue;
      const Word* right = b.data + panel * b.depth + span.word * kPanel + (begin - panel);
      const Word* left = a.data + row * a.row + span.word * a.step;
      const float* by_row = shrink == nullptr || shrink == kNoShrink ? shrink : shrink + row;
      const int height = rows - row < kGroup ? rows - row : kGroup;
      ahead.bring();
      multiply_of<Word>(height, (end - begin) / kLanes)(left, a.row, a.step, right, depth,
                                                        c.data + row * c.row + begin, c.row, by_row);
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
