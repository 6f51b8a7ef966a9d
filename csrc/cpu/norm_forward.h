// Forward of layer norm (kCentered) and RMS norm. A row is read from memory once; the passes after the first find it in
// the first-level cache.
#pragma once

#include <cmath>

#include "blocks.h"
#include "norm.h"
#include "row_tasks.h"
#include "streaming.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// Vectors over the columns, in the order of blocks of T.
struct ForwardColumns {
  const float* weight;
  const float* bias;
  const float* valid;  // 1 for a column, 0 for the padding after the last
};

// Whether the next rows are fetched while these are normalised, not what lies ahead while they are summed: from the
// second-level cache that is 1.1 times as fast for float32, from the third 1.0, and for two bytes an element 0.9 to 1.0.
template <class T>
constexpr bool kNextRows = sizeof(T) == 4;

// Sums over rows around `center`: of x - center and of its square. read(r, i, n) gives a block of x.
template <bool kCentered, int kRows, class Read>
UNDIVIDED_INLINE void sums_around(const ForwardColumns& by_column, int64_t columns, const float* center, float* total,
                                  float* squares, Read read) {
  Block from[kRows], first[kRows], second[kRows];
  for (int r = 0; r < kRows; ++r) {
    from[r] = block_of(kCentered ? center[r] : 0.0F);
    first[r] = second[r] = block_of(0.0F);
  }
  each_block(columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
    for (int r = 0; r < kRows; ++r) {
      Block v = read(r, i, n);
      if constexpr (kCentered) v = v - from[r];
      if (kCentered && n != kBlock) v = v * load_block(by_column.valid + i);
      if constexpr (kCentered) first[r] = first[r] + v;
      second[r] = second[r] + v * v;
    }
  });
  for (int r = 0; r < kRows; ++r) {
    total[r] = kCentered ? sum(first[r]) : 0.0F;
    squares[r] = sum(second[r]);
  }
}

// One pass gives mean and variance, around a number that should lie near the mean: the first element. Where it is far
// off, measured in standard deviations, digits would be lost, and a second pass sums around the mean itself. The first
// pass has x from meet(r, i, n), which leaves it at `x`; `mean` holds that number before.
template <bool kCentered, int kRows, class T, class Meet>
UNDIVIDED_INLINE void row_statistics(const T* x, const ForwardColumns& by_column, int64_t columns, float eps,
                                     float* mean, float* rstd, Meet meet) {
  constexpr float kFar = 8.0F;  // squared: one element of a normal distribution in 200
  const float over_columns = 1.0F / static_cast<float>(columns);
  float total[kRows], squares[kRows], variance[kRows];
  sums_around<kCentered, kRows>(by_column, columns, mean, total, squares, meet);
  bool any_far = false, far[kRows];
  for (int r = 0; r < kRows; ++r) {
    const float away = total[r] * over_columns;
    mean[r] += away;
    variance[r] = squares[r] * over_columns - away * away;
    far[r] = !(away * away <= kFar * variance[r]);
    any_far |= far[r];
  }
  if (kCentered && __builtin_expect(any_far, 0)) {
    const auto again = [&](int r, int64_t i, int n) UNDIVIDED_INLINE_LAMBDA { return load_some(x + r * columns + i, n); };
    sums_around<kCentered, kRows>(by_column, columns, mean, total, squares, again);
    for (int r = 0; r < kRows; ++r) {
      if (!far[r]) continue;  // a row's result must not depend on the row that it is worked on with
      const float rest = total[r] * over_columns;
      mean[r] += rest;
      variance[r] = squares[r] * over_columns - rest * rest;
    }
  }
  for (int r = 0; r < kRows; ++r) rstd[r] = 1.0F / std::sqrt(variance[r] + eps);
}

// y = (x - mean) * rstd * weight + bias. `next` are the rows that come after these.
template <bool kCentered, int kRows, bool kStream, class T>
UNDIVIDED_INLINE void normalise_rows(const T* x, const T* next, T* y, const ForwardColumns& by_column, const float* mean,
                                     const float* rstd, int64_t columns) {
  // The mean comes off first: x * rstd - mean * rstd would keep an error of the size of the mean.
  Block center[kRows], scale[kRows];
  for (int r = 0; r < kRows; ++r) {
    center[r] = block_of(mean[r]);
    scale[r] = block_of(rstd[r]);
  }
  each_block(columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
    const Block weight = load_block(by_column.weight + i);
    const Block bias = kCentered ? load_block(by_column.bias + i) : block_of(0.0F);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * columns + i;
      Block v = load_some(x + at, n);
      if constexpr (kNextRows<T>) prefetch_block(next + at);
      if constexpr (kCentered) v = (v - center[r]) * scale[r] * weight + bias;
      if constexpr (!kCentered) v = v * scale[r] * weight;
      store_or_stream<kStream>(y + at, v, n);
    }
  });
}

template <bool kCentered, int kRows, bool kStream, class T>
UNDIVIDED_INLINE void forward_rows(const NormForward& call, const ForwardColumns& by_column, int64_t row) {
  const int64_t columns = call.columns, start = row * columns;
  const T* x = static_cast<const T*>(call.x) + start;
  const T* residual = call.residual == nullptr ? nullptr : static_cast<const T*>(call.residual) + start;
  T* summed = residual == nullptr ? nullptr : static_cast<T*>(call.summed) + start;
  float mean[kRows], rstd[kRows];
  const auto first = [&](const T* of, int r) UNDIVIDED_INLINE_LAMBDA {
    return kCentered ? load_part(of + r * columns, 1)[0] : 0.0F;
  };
  if (kStream && residual != nullptr) {
    // The sum is on its way past the caches when the second pass needs it, so it is in scratch as well.
    T* here = static_cast<T*>(scratch(kRows * columns * sizeof(T), 1));
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * columns;
      store_some(here + at, load_some(x + at, 1) + load_some(residual + at, 1), 1);
      mean[r] = first(here, r);
    }
    const auto add = [&](int r, int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
      const int64_t at = r * columns + i;
      const Block sum = load_ahead(x + at, n) + load_ahead(residual + at, n);
      stream_block(summed + at, sum);
      store_block(here + at, sum);
      return load_block(here + at);  // rounded
    };
    row_statistics<kCentered, kRows>(here, by_column, columns, call.eps, mean, rstd, add);
    x = here;
  } else {
    if (residual != nullptr) {
      each_block(kRows * columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
        store_some(summed + i, load_ahead(x + i, n) + load_ahead(residual + i, n), n);
      });
      x = summed;
    }
    for (int r = 0; r < kRows; ++r) mean[r] = first(x, r);
    const auto read = [&](int r, int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
      const T* at = x + r * columns + i;
      return kNextRows<T> ? load_some(at, n) : load_ahead<kRows>(at, n);
    };
    row_statistics<kCentered, kRows>(x, by_column, columns, call.eps, mean, rstd, read);
  }
  const T* next = static_cast<const T*>(call.x) + start + kRows * columns;
  normalise_rows<kCentered, kRows, kStream>(x, next, static_cast<T*>(call.y) + start, by_column, mean, rstd, columns);
  for (int r = 0; r < kRows; ++r) {
    if (kCentered && call.mean != nullptr) call.mean[row + r] = mean[r];
    if (call.rstd != nullptr) call.rstd[row + r] = rstd[r];
  }
}

// Two rows at a time share the loads of the weight, and their sums need not wait for one another. On Zen 4, float32,
// they beat one by 10 to 25 % while rows are in the second-level cache, and four are no better. From memory one at a
// time is best: one stream to prefetch.
template <bool kCentered, bool kStream, class T>
void forward_all(const NormForward& call, const ForwardColumns& by_column) {
  constexpr int kRows = kStream ? 1 : 2;
  const int threads = useful_threads(call.threads, call.rows * call.columns);
  const int64_t groups = (call.rows + kRows - 1) / kRows;
  // As many tasks as threads: then a thread meets the rows that the op before left in its own cache.
  parallel_for(threads, threads, [&](int64_t task) {
    int64_t row = groups * task / threads * kRows;
    int64_t end = groups * (task + 1) / threads * kRows;
    if (end > call.rows) end = call.rows;
    for (; row + kRows <= end; row += kRows) forward_rows<kCentered, kRows, kStream, T>(call, by_column, row);
    for (; row < end; ++row) forward_rows<kCentered, 1, kStream, T>(call, by_column, row);
    finish_streaming<kStream>();
  });
}

template <bool kCentered, class T>
void forward_typed(const NormForward& call) {
  const int64_t padded = rounded_up(call.columns, kBlock);
  float* weight = static_cast<float*>(scratch(3 * padded * sizeof(float), 0));
  float *bias = weight + padded, *valid = bias + padded;
  read_columns<T>(call.weight, call.weight_dtype, call.columns, 1.0F, weight);
  read_columns<T>(call.bias, call.bias_dtype, call.columns, 0.0F, bias);
  read_columns<T>(nullptr, kFloat32, call.columns, 1.0F, valid);
  const ForwardColumns by_column{weight, bias, valid};
  const bool aligned = reinterpret_cast<uintptr_t>(call.summed) % 64 == 0;
  if (aligned && worth_streaming<T>(call.y, call.rows, call.columns, call.residual == nullptr ? 2 : 4)) {
    forward_all<kCentered, true, T>(call, by_column);
  } else {
    forward_all<kCentered, false, T>(call, by_column);
  }
}

template <bool kCentered>
void norm_forward(const NormForward& call) {
  if (call.dtype == kFloat32) return forward_typed<kCentered, float>(call);
  if (call.dtype == kBFloat16) return forward_typed<kCentered, bfloat16>(call);
  return forward_typed<kCentered, float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
