// Forward of layer norm (kCentered) and RMS norm. A row is read from memory once; the further passes over it find it
// in the first-level cache. The variance is summed around the mean in a pass of its own: one pass with sums of
// squares loses every digit when the mean is large.
#pragma once

#include <cmath>

#include "norm_rows.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr int kForwardRows = 4;  // rows that share one load of the weight

template <bool kCentered, class T>
UNDIVIDED_INLINE void row_statistics(const T* row, int64_t columns, float eps, float& mean, float& rstd) {
  const float over_columns = 1.0F / static_cast<float>(columns);
  mean = 0.0F;
  if constexpr (kCentered) {
    mean = reduce_row(row, columns, [](Vec v) { return v; }) * over_columns;
  }
  const Vec center = broadcast(mean);
  const float variance = reduce_row(row, columns, [&](Vec v) {
    if constexpr (kCentered) v -= center;
    return v * v;
  });
  rstd = 1.0F / std::sqrt(variance * over_columns + eps);
}

// y = (x - mean) * rstd * weight + bias for kRows neighbouring rows.
template <bool kCentered, int kRows, bool kStream, class T>
UNDIVIDED_INLINE void normalise_rows(const T* x, T* y, const float* weight, const float* bias, const float* mean,
                                     const float* rstd, int64_t columns) {
  Vec center[kRows], scale[kRows];
  for (int r = 0; r < kRows; ++r) {
    center[r] = broadcast(mean[r]);
    scale[r] = broadcast(rstd[r]);
  }
  each_vector(columns, [&](int64_t i, int n) {
    const Vec w = load_some(weight + i, n);
    const Vec b = kCentered ? load_some(bias + i, n) : zeros();
    for (int r = 0; r < kRows; ++r) {
      Vec v = load_some(x + r * columns + i, n);
      if constexpr (kCentered) v -= center[r];
      v = v * scale[r] * w;
      if constexpr (kCentered) v += b;
      if constexpr (kStream) {
        stream(y + r * columns + i, v);  // rows are whole vectors here
      } else {
        store_some(y + r * columns + i, v, n);
      }
    }
  });
}

template <bool kCentered, int kRows, bool kStream, class T>
UNDIVIDED_INLINE void forward_rows(const NormForward& call, const float* weight, const float* bias, int64_t row) {
  const int64_t columns = call.columns, start = row * columns;
  const T* x = static_cast<const T*>(call.x) + start;
  if (call.residual != nullptr) {
    const T* residual = static_cast<const T*>(call.residual) + start;
    T* summed = static_cast<T*>(call.summed) + start;
    each_vector(kRows * columns, [&](int64_t i, int n) {
      store_some(summed + i, load_some(x + i, n) + load_some(residual + i, n), n);
    });
    x = summed;
  }
  float mean[kRows], rstd[kRows];
  for (int r = 0; r < kRows; ++r) {
    row_statistics<kCentered>(x + r * columns, columns, call.eps, mean[r], rstd[r]);
    if (kCentered) call.mean[row + r] = mean[r];
    call.rstd[row + r] = rstd[r];
  }
  normalise_rows<kCentered, kRows, kStream>(x, static_cast<T*>(call.y) + start, weight, bias, mean, rstd, columns);
}

template <bool kCentered, bool kStream, class T>
void forward_all(const NormForward& call, const float* weight, const float* bias) {
  const int threads = useful_threads(call.threads, call.rows * call.columns);
  const int64_t groups = (call.rows + kForwardRows - 1) / kForwardRows;
  // As many tasks as threads: then a thread meets the rows that the op before left in its own cache.
  const int64_t tasks = threads;
  parallel_for(tasks, threads, [&](int64_t task) {
    int64_t row = groups * task / tasks * kForwardRows;
    int64_t end = groups * (task + 1) / tasks * kForwardRows;
    if (end > call.rows) end = call.rows;
    for (; row + kForwardRows <= end; row += kForwardRows) {
      forward_rows<kCentered, kForwardRows, kStream, T>(call, weight, bias, row);
    }
    for (; row < end; ++row) forward_rows<kCentered, 1, kStream, T>(call, weight, bias, row);
#if defined(__x86_64__)
    if (kStream) __builtin_ia32_sfence();
#endif
  });
}

template <bool kCentered, class T>
void forward_typed(const NormForward& call) {
  const int64_t padded = rounded_up(call.columns, kLanes);
  float* weight = static_cast<float*>(scratch(2 * padded * sizeof(float), 0));
  float* bias = weight + padded;
  weight_as_float(call.weight, call.weight_dtype, call.columns, 1.0F, weight);
  weight_as_float(call.bias, call.bias_dtype, call.columns, 0.0F, bias);
  const bool aligned = reinterpret_cast<uintptr_t>(call.y) % 64 == 0 && call.columns % kLanes == 0;
  if (aligned && call.rows * call.columns * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
    forward_all<kCentered, true, T>(call, weight, bias);
  } else {
    forward_all<kCentered, false, T>(call, weight, bias);
  }
}

template <bool kCentered>
void norm_forward(const NormForward& call) {
  if (call.dtype == kFloat32) return forward_typed<kCentered, float>(call);
  if (call.dtype == kBFloat16) return forward_typed<kCentered, bfloat16>(call);
  return forward_typed<kCentered, float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
