// What the forward and backward of both norms share: sums over a row, weights as float, how rows go to threads.
#pragma once

#include "dtype.h"
#include "norm.h"
#include "simd.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// Bytes of output from which stores go past the caches.
constexpr int64_t kStreamBytes = int64_t{24} << 20;
// A call with fewer elements than this for each thread is over before another thread has woken up.
constexpr int64_t kElementsPerThread = 16384;

UNDIVIDED_INLINE IntVec first_lanes(int n) {
  IntVec index{};
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = lane;
  return index < (IntVec{} + n);
}

// The sum over a row of f(element). Four accumulators, so that additions need not wait for one another.
template <class T, class F>
UNDIVIDED_INLINE float reduce_row(const T* row, int64_t columns, F f) {
  Vec a = zeros(), b = zeros(), c = zeros(), d = zeros();
  int64_t i = 0;
  for (; i + 4 * kLanes <= columns; i += 4 * kLanes) {
    a += f(load(row + i));
    b += f(load(row + i + kLanes));
    c += f(load(row + i + 2 * kLanes));
    d += f(load(row + i + 3 * kLanes));
  }
  for (; i + kLanes <= columns; i += kLanes) a += f(load(row + i));
  if (const int rest = static_cast<int>(columns - i)) {
    b += first_lanes(rest) ? f(load_part(row + i, rest)) : zeros();
  }
  return sum((a + b) + (c + d));
}

// step(i, n) for each vector of a row: n is kLanes as a constant, or for the last one what is left.
template <class F>
UNDIVIDED_INLINE void each_vector(int64_t columns, F step) {
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) step(i, kLanes);
  if (i < columns) step(i, static_cast<int>(columns - i));
}

template <class T>
UNDIVIDED_INLINE Vec load_some(const T* p, int n) {
  return n == kLanes ? load(p) : load_part(p, n);
}
template <class T>
UNDIVIDED_INLINE void store_some(T* p, Vec v, int n) {
  if (n == kLanes) {
    store(p, v);
  } else {
    store_part(p, v, n);
  }
}

inline int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A weight or bias as floats, `fill` everywhere when there is none.
inline void weight_as_float(const void* weight, int dtype, int64_t columns, float fill, float* out) {
  each_vector(columns, [&](int64_t i, int n) {
    Vec v = broadcast(fill);
    if (weight != nullptr && dtype == kFloat32) v = load_some(static_cast<const float*>(weight) + i, n);
    if (weight != nullptr && dtype == kBFloat16) v = load_some(static_cast<const bfloat16*>(weight) + i, n);
    if (weight != nullptr && dtype == kFloat16) v = load_some(static_cast<const float16*>(weight) + i, n);
    store_some(out + i, v, n);
  });
}

inline void float_as_weight(const float* values, int dtype, int64_t begin, int64_t end, void* out) {
  each_vector(end - begin, [&](int64_t i, int n) {
    const Vec v = load_some(values + i, n);
    if (dtype == kFloat32) store_some(static_cast<float*>(out) + begin + i, v, n);
    if (dtype == kBFloat16) store_some(static_cast<bfloat16*>(out) + begin + i, v, n);
    if (dtype == kFloat16) store_some(static_cast<float16*>(out) + begin + i, v, n);
  });
}

inline int useful_threads(int threads, int64_t elements) {
  const int64_t most = elements / kElementsPerThread;
  return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

}  // namespace undivided::UNDIVIDED_VARIANT
