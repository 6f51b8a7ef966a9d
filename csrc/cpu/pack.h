// Rows of a tensor as the operands of products (matmul_tile.h): words along head_dim, padded with zeros.
//
//   pack_rows        rows of words, for the left operand
//   pack_transposed  panels of kPanel rows, one word of each side by side: the right operand of a product with rows
//   pack_panels      panels of kPanel columns, rows below one another: the right operand that rows are summed with
#pragma once

#include "exp2.h"
#include "matmul_tile.h"

namespace undivided::UNDIVIDED_VARIANT {

// Source rows of T, `columns` wide.
template <class T>
struct Source {
  const T* data;
  int64_t row;  // stride
  int count;
  int columns;
  UNDIVIDED_INLINE const T* at(int r) const { return data + r * row; }
};

// The kLanes words from element `column` on; beyond the last column 0.
template <class Word, class T>
UNDIVIDED_INLINE UintVec words_at(const T* row, int column, int columns) {
  const int left = columns - column;
  if constexpr (kPerWord<Word> == 2) {
    UintVec words{};
    if (left >= 2 * kLanes) {
      std::memcpy(&words, row + column, sizeof words);
    } else if (left > 0) {
#if defined(__AVX512BF16__)
      words = (UintVec)_mm512_maskz_loadu_epi16((1U << left) - 1U, row + column);
#endif
    }
    return words;
  } else {
    if (left >= kLanes) return bits_of(load(row + column));
    return left > 0 ? bits_of(load_part(row + column, left)) : UintVec{};
  }
}

UNDIVIDED_INLINE void store_words(void* p, UintVec words) { std::memcpy(p, &words, sizeof words); }

// dst (source.count, stride) words; stride is a whole number of vectors.
template <class Word, class T>
void pack_rows(const Source<T>& source, Word* dst, int stride) {
  for (int r = 0; r < source.count; ++r) {
    for (int w = 0; w < stride; w += kLanes) {
      store_words(dst + r * stride + w, words_at<Word>(source.at(r), w * kPerWord<Word>, source.columns));
    }
  }
}

// The way back: `columns` floats times `factor` as a row of T.
template <class T>
UNDIVIDED_INLINE void unpack_row(const float* source, T* dst, int columns, float factor) {
  for (int c = 0; c < columns; c += kLanes) {
    const Vec x = load(source + c) * factor;
    if (columns - c >= kLanes) {
      store(dst + c, x);
    } else {
      store_part(dst + c, x, columns - c);
    }
  }
}

template <class T>
UNDIVIDED_INLINE float dot(const T* a, const T* b, int columns) {
  Vec total = zeros();
  int c = 0;
  for (; c + kLanes <= columns; c += kLanes) total = total + load(a + c) * load(b + c);
  if (c < columns) total = total + load_part(a + c, columns - c) * load_part(b + c, columns - c);
  return sum(total);
}

// ---- transposition ----

template <int kDistance>
UNDIVIDED_INLINE void exchange(UintVec& a, UintVec& b) {
  IntVec low, high;
  for (int x = 0; x < kLanes; ++x) {
    low[x] = (x & kDistance) != 0 ? kLanes + x - kDistance : x;
    high[x] = (x & kDistance) != 0 ? kLanes + x : x + kDistance;
  }
  const UintVec first = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = first;
}

template <int kDistance>
UNDIVIDED_INLINE void transpose_from(UintVec* rows) {
  unrolled<kLanes>([&](auto i) {
    if constexpr ((decltype(i)::value & kDistance) == 0) exchange<kDistance>(rows[i.value], rows[i.value + kDistance]);
  });
  if constexpr (kDistance * 2 < kLanes) transpose_from<kDistance * 2>(rows);
}

// dst: panels of (depth, kPanel) words; rows beyond the last, up to a whole vector, and columns up to depth are 0.
template <class Word, class T>
void pack_transposed(const Source<T>& source, Word* dst, int depth) {
  for (int r = 0; r < source.count; r += kLanes) {
    Word* panel = dst + r / kPanel * kPanel * depth + r % kPanel;
    for (int w = 0; w < depth; w += kLanes) {
      UintVec rows[kLanes];
      unrolled<kLanes>([&](auto i) {
        rows[i.value] = UintVec{};
        if (r + i.value < source.count) {
          rows[i.value] = words_at<Word>(source.at(r + i.value), w * kPerWord<Word>, source.columns);
        }
      });
      transpose_from<1>(rows);
      unrolled<kLanes>([&](auto i) {
        if (w + i.value < depth) store_words(panel + (w + i.value) * kPanel, rows[i.value]);
      });
    }
  }
}

// ---- panels ----

UNDIVIDED_INLINE IntVec not_finite(UintVec bits) { return (IntVec)((bits & 0x7f800000U) == 0x7f800000U); }

template <class T>
UNDIVIDED_INLINE UintVec low_halves(const T* row, int column, int left) {
  HalfVec h{};
  if (left >= kLanes) {
    std::memcpy(&h, row + column, sizeof h);
  } else {
#if defined(__AVX512BF16__)
    h = (HalfVec)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1U << left) - 1U), row + column);
#endif
  }
  return widen_bits(h);
}

// dst: panels of (depth, kPanel) words, of which the first ceil(count / kPerWord) of each column are filled. Returns
// whether any element was NaN or infinite.
template <class Word, class T>
bool pack_panels(const Source<T>& source, Word* dst, int64_t depth) {
  IntVec bad{};
  for (int c = 0; c < source.columns; c += kLanes) {
    Word* column = dst + c / kPanel * kPanel * depth + c % kPanel;
    const int left = source.columns - c;
    for (int r = 0; r < source.count; r += kPerWord<Word>) {
      UintVec words;
      if constexpr (kPerWord<Word> == 2) {
        words = low_halves(source.at(r), c, left);
        if (r + 1 < source.count) words |= low_halves(source.at(r + 1), c, left) << 16;
        bad |= not_finite(words << 16);
      } else {
        words = words_at<Word>(source.at(r), c, source.columns);
      }
      bad |= not_finite(words);
      store_words(column + r / kPerWord<Word> * kPanel, words);
    }
  }
  return any(bad);
}

// Zeros below the last of `count` rows, up to `end` rows (whole words).
template <class Word>
void zero_below(Word* panels, int64_t depth, int width, int64_t count, int64_t end) {
  const int64_t first = (count + kPerWord<Word> - 1) / kPerWord<Word>, words = end / kPerWord<Word> - first;
  for (int panel = 0; words > 0 && panel < width; panel += kPanel) {
    std::memset(panels + panel * depth + first * kPanel, 0, words * kPanel * sizeof(Word));
  }
}

// Puts 0 in place of NaN and infinity: 0 * NaN would carry a hidden row into a product.
template <class Word>
void clean_panels(Word* panels, int64_t words) {
  for (int64_t i = 0; i < words; i += kLanes) {
    UintVec bits;
    std::memcpy(&bits, panels + i, sizeof bits);
    if constexpr (kPerWord<Word> == 2) {
      const UintVec low = bits << 16;
      bits = ((UintVec)~not_finite(bits) & bits & 0xffff0000U) | (((UintVec)~not_finite(low) & low) >> 16);
    } else {
      bits &= (UintVec)~not_finite(bits);
    }
    store_words(panels + i, bits);
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
