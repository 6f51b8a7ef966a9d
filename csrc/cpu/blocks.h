// Rows as blocks of two vectors. For bfloat16 a block is one load of 32-bit words: the even elements are their upper
// halves after a shift, the odd ones after a mask, which is half the work of widening two vectors one after the other.
// So a block holds first the even and then the odd elements; weights and weight gradients are kept in the same order.
#pragma once

#include "dtype.h"
#include "simd.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr int kBlock = 2 * kLanes;

struct Block {
  Vec a, b;
};

template <class T>
constexpr bool kEvenOdd = false;
template <>
constexpr bool kEvenOdd<bfloat16> = true;

UNDIVIDED_INLINE Block operator+(Block x, Block y) { return {x.a + y.a, x.b + y.b}; }
UNDIVIDED_INLINE Block operator-(Block x, Block y) { return {x.a - y.a, x.b - y.b}; }
UNDIVIDED_INLINE Block operator*(Block x, Block y) { return {x.a * y.a, x.b * y.b}; }
UNDIVIDED_INLINE Block in_register(Block x) { return {in_register(x.a), in_register(x.b)}; }
UNDIVIDED_INLINE Block block_of(float value) { return {broadcast(value), broadcast(value)}; }
UNDIVIDED_INLINE float sum(Block x) { return sum(x.a + x.b); }

// ---- whole blocks ----

template <class T>
UNDIVIDED_INLINE Block load_block(const T* p) {
  if constexpr (kEvenOdd<T>) {
    UintVec words;
    std::memcpy(&words, p, sizeof words);
    words = in_register(words);
    return {of_bits(words << 16), of_bits(words & 0xffff0000U)};
  } else {
    return {load(p), load(p + kLanes)};
  }
}

// A block of bfloat16 as 32-bit words, each the odd element above the even one.
UNDIVIDED_INLINE UintVec words_of(Block x) {
#if defined(__AVX512BF16__)
  // One conversion gives all even elements below all odd ones; the permutation puts them side by side.
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)x.b, (__m512)x.a);
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (UintVec)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
#else
  return (round_bfloat16(x.a) >> 16) | (round_bfloat16(x.b) & 0xffff0000U);
#endif
}

template <class T>
UNDIVIDED_INLINE void store_block(T* p, Block x) {
  if constexpr (kEvenOdd<T>) {
    const UintVec words = words_of(x);
    std::memcpy(p, &words, sizeof words);
  } else {
    store(p, x.a);
    store(p + kLanes, x.b);
  }
}

// Past the caches; p is aligned to 64 bytes.
template <class T>
UNDIVIDED_INLINE void stream_block(T* p, Block x) {
  if constexpr (kEvenOdd<T>) {
    stream(reinterpret_cast<float*>(p), of_bits(words_of(x)));
  } else {
    stream(p, x.a);
    stream(p + kLanes, x.b);
  }
}

// ---- the last block of a row: n elements, n < kBlock; the other lanes are 0 ----

template <class T>
UNDIVIDED_INLINE Block load_some(const T* p, int n) {
  if (n == kBlock) return load_block(p);
#if defined(__AVX512F__)
  if constexpr (kEvenOdd<T>) {
    const __mmask32 first = (1U << n) - 1U;
    const UintVec words = (UintVec)_mm512_maskz_loadu_epi16(first, p);
    return {of_bits(words << 16), of_bits(words & 0xffff0000U)};
  } else {
    if (n >= kLanes) return {load(p), load_part(p + kLanes, n - kLanes)};
    return {load_part(p, n), zeros()};
  }
#else
  T buffer[kBlock] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load_block(buffer);
#endif
}

template <class T>
UNDIVIDED_INLINE void store_some(T* p, Block x, int n) {
  if (n == kBlock) return store_block(p, x);
#if defined(__AVX512F__)
  if constexpr (kEvenOdd<T>) {
    const __mmask32 first = (1U << n) - 1U;
    _mm512_mask_storeu_epi16(p, first, (__m512i)words_of(x));
  } else {
    if (n < kLanes) return store_part(p, x.a, n);
    store(p, x.a);
    store_part(p + kLanes, x.b, n - kLanes);
  }
#else
  T buffer[kBlock];
  store_block(buffer, x);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
#endif
}

// May reach past the end of the memory.
template <class T>
UNDIVIDED_INLINE void prefetch_block(const T* p) {
  const char* bytes = reinterpret_cast<const char*>(p);
  for (size_t at = 0; at < kBlock * sizeof(T); at += 64) __builtin_prefetch(bytes + at);
}

// load_some for the pass that meets rows first: what lies 2 KiB on is fetched meanwhile. From the third-level cache of
// Emerald Rapids, one thread, bfloat16, rows of 512 / 1,024 / 4,096 columns: norms 1.2 to 1.3 / 1.0 to 1.15 / 1.0 times
// as fast as without, after a residual 1.08 / 1.0 to 1.08 / 1.0; backward in float32, rotary and activations 1.0 to
// 1.1. 1 to 4 KiB are as good, 8 are not. Of kRows rows side by side each is fetched as many times farther on, beyond
// the others: norms of two bfloat16 rows of 1,024 columns are 1.1 to 1.6 times as fast from memory by that, on Zen 5.
template <class T>
constexpr int64_t kAhead = 2048 / sizeof(T);
template <int kRows = 1, class T>
UNDIVIDED_INLINE Block load_ahead(const T* p, int n) {
  prefetch_block(p + kRows * kAhead<T>);
  return load_some(p, n);
}

// step(i, n) for each block of a row: n is kBlock as a constant, or for the last block what is left.
template <class F>
UNDIVIDED_INLINE void each_block(int64_t columns, F step) {
  int64_t i = 0;
  for (; i + kBlock <= columns; i += kBlock) step(i, kBlock);
  if (i < columns) step(i, static_cast<int>(columns - i));
}

inline int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// ---- vectors over columns, as floats in the order of blocks of T ----

template <class T>
UNDIVIDED_INLINE void to_block_order(float* values) {
  if constexpr (kEvenOdd<T>) {
#if defined(__AVX512F__)
    const __m512 low = _mm512_loadu_ps(values), high = _mm512_loadu_ps(values + kLanes);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    _mm512_storeu_ps(values, _mm512_permutex2var_ps(low, even, high));
    _mm512_storeu_ps(values + kLanes, _mm512_permutex2var_ps(low, odd, high));
#else
    float sorted[kBlock];
    for (int lane = 0; lane < kLanes; ++lane) {
      sorted[lane] = values[2 * lane];
      sorted[kLanes + lane] = values[2 * lane + 1];
    }
    std::memcpy(values, sorted, sizeof sorted);
#endif
  }
}

template <class T>
UNDIVIDED_INLINE void from_block_order(const float* values, float* out) {
  for (int lane = 0; lane < kLanes; ++lane) {
    out[kEvenOdd<T> ? 2 * lane : lane] = values[lane];
    out[kEvenOdd<T> ? 2 * lane + 1 : kLanes + lane] = values[kLanes + lane];
  }
}

UNDIVIDED_INLINE Vec load_as(const void* p, int dtype, int64_t i) {
  if (dtype == kBFloat16) return load(static_cast<const bfloat16*>(p) + i);
  if (dtype == kFloat16) return load(static_cast<const float16*>(p) + i);
  return load(static_cast<const float*>(p) + i);
}
UNDIVIDED_INLINE Vec load_part_as(const void* p, int dtype, int64_t i, int n) {
  if (dtype == kBFloat16) return load_part(static_cast<const bfloat16*>(p) + i, n);
  if (dtype == kFloat16) return load_part(static_cast<const float16*>(p) + i, n);
  return load_part(static_cast<const float*>(p) + i, n);
}

// A weight or bias (columns,) of any dtype, padded with zeros to whole blocks; `fill` everywhere when it is null.
template <class T>
void read_columns(const void* weight, int dtype, int64_t columns, float fill, float* out) {
  for (int64_t i = 0; i < rounded_up(columns, kBlock); i += kLanes) {
    const int n = columns - i >= kLanes ? kLanes : columns - i > 0 ? static_cast<int>(columns - i) : 0;
    Vec v = zeros();
    if (weight == nullptr) {
      for (int lane = 0; lane < n; ++lane) v[lane] = fill;
    } else {
      v = n == kLanes ? load_as(weight, dtype, i) : n > 0 ? load_part_as(weight, dtype, i, n) : v;
    }
    store(out + i, v);
  }
  for (int64_t i = 0; kEvenOdd<T> && i < columns; i += kBlock) to_block_order<T>(out + i);
}

// The columns [begin, end) of `values` (in the order of blocks; begin is a whole number of blocks) to any dtype.
template <class T>
void write_columns(const float* values, int dtype, int64_t begin, int64_t end, void* out) {
  for (int64_t i = begin; i < end; i += kBlock) {
    float plain[kBlock];
    from_block_order<T>(values + i, plain);
    const Block x{load(plain), load(plain + kLanes)};
    const int n = end - i < kBlock ? static_cast<int>(end - i) : kBlock;
    if (dtype == kFloat32) {
      std::memcpy(static_cast<float*>(out) + i, plain, n * sizeof(float));
    } else {
      HalfVec halves[2];
      halves[0] = dtype == kBFloat16 ? narrow_bfloat16(x.a) : narrow_float16(x.a);
      halves[1] = dtype == kBFloat16 ? narrow_bfloat16(x.b) : narrow_float16(x.b);
      std::memcpy(static_cast<uint16_t*>(out) + i, halves, n * sizeof(uint16_t));
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
