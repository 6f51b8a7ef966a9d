// Backward of layer norm (kCentered) and RMS norm. With xhat = (x - mean) * rstd and g = dy * weight:
//
//   dx = rstd * (g - mean_of_row(g) - xhat * mean_of_row(g * xhat)) + dsummed      (RMS norm: without mean_of_row(g))
//   dweight = sum over rows of dy * xhat,  dbias = sum over rows of dy
//
// The sums over rows are made in blocks of rows whose borders depend on the shape alone, and the blocks are added in
// order: the result is the same to the bit whatever the number of threads and their timing.
#pragma once

#include "norm_rows.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr int kBackwardRows = 4;  // rows that share one load and store of the weight gradients
constexpr int64_t kMostBlocks = 64;
constexpr int64_t kLeastRowsPerBlock = 16;

template <class T>
struct BackwardRows {
  const T* x;
  const T* dy;
  const T* dsummed;
  T* dx;
  const float* weight;
  float* dweight;  // this block's partial sums
  float* dbias;
  int64_t columns;
};

// Adds kRows rows to dweight and dbias, and gives each row's sums of g and of g * xhat.
template <bool kCentered, int kRows, class T>
UNDIVIDED_INLINE void sum_rows(const BackwardRows<T>& rows, const float* mean, const float* rstd, float* sum_g,
                               float* sum_gx) {
  Vec center[kRows], scale[kRows], g_total[kRows], gx_total[kRows];
  for (int r = 0; r < kRows; ++r) {
    center[r] = broadcast(kCentered ? mean[r] : 0.0F);
    scale[r] = broadcast(rstd[r]);
    g_total[r] = gx_total[r] = zeros();
  }
  each_vector(rows.columns, [&](int64_t i, int n) {
    const Vec w = load_some(rows.weight + i, n);
    Vec dw = load(rows.dweight + i), db = load(rows.dbias + i);  // padded to whole vectors
    for (int r = 0; r < kRows; ++r) {
      const Vec dy = load_some(rows.dy + r * rows.columns + i, n);
      Vec xhat = load_some(rows.x + r * rows.columns + i, n);
      if constexpr (kCentered) xhat -= center[r];
      xhat *= scale[r];
      const Vec g = dy * w;
      if constexpr (kCentered) g_total[r] += g;
      gx_total[r] += g * xhat;
      dw += dy * xhat;
      if constexpr (kCentered) db += dy;
    }
    store(rows.dweight + i, dw);
    if constexpr (kCentered) store(rows.dbias + i, db);
  });
  for (int r = 0; r < kRows; ++r) {
    sum_g[r] = kCentered ? sum(g_total[r]) : 0.0F;
    sum_gx[r] = sum(gx_total[r]);
  }
}

template <bool kCentered, int kRows, bool kSummed, bool kStream, class T>
UNDIVIDED_INLINE void input_gradient(const BackwardRows<T>& rows, const float* mean, const float* rstd,
                                     const float* sum_g, const float* sum_gx) {
  const float over_columns = 1.0F / static_cast<float>(rows.columns);
  Vec center[kRows], scale[kRows], shift[kRows], slope[kRows];
  for (int r = 0; r < kRows; ++r) {
    center[r] = broadcast(kCentered ? mean[r] : 0.0F);
    scale[r] = broadcast(rstd[r]);
    shift[r] = broadcast(sum_g[r] * over_columns * rstd[r]);
    slope[r] = broadcast(sum_gx[r] * over_columns * rstd[r] * rstd[r]);
  }
  each_vector(rows.columns, [&](int64_t i, int n) {
    const Vec w = load_some(rows.weight + i, n);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * rows.columns + i;
      Vec x = load_some(rows.x + at, n);
      if constexpr (kCentered) x -= center[r];
      Vec dx = load_some(rows.dy + at, n) * w * scale[r] - x * slope[r];
      if constexpr (kCentered) dx -= shift[r];
      if constexpr (kSummed) dx += load_some(rows.dsummed + at, n);
      if constexpr (kStream) {
        stream(rows.dx + at, dx);
      } else {
        store_some(rows.dx + at, dx, n);
      }
    }
  });
}

template <bool kCentered, int kRows, bool kSummed, bool kStream, class T>
UNDIVIDED_INLINE void backward_rows(const NormBackward& call, BackwardRows<T> rows, int64_t row) {
  const int64_t start = row * rows.columns;
  rows.x += start;
  rows.dy += start;
  rows.dx += start;
  if (kSummed) rows.dsummed += start;
  const float* mean = kCentered ? call.mean + row : nullptr;
  float sum_g[kRows], sum_gx[kRows];
  sum_rows<kCentered, kRows>(rows, mean, call.rstd + row, sum_g, sum_gx);
  input_gradient<kCentered, kRows, kSummed, kStream>(rows, mean, call.rstd + row, sum_g, sum_gx);
}

// Adds the blocks' partial sums in order and rounds once, to the parameter's type.
inline void add_blocks(const NormBackward& call, float* partial, int64_t blocks, int64_t stride, int64_t begin,
                       int64_t end) {
  for (int which = 0; which < 2; ++which) {
    void* out = which == 0 ? call.dweight : call.dbias;
    if (out == nullptr) continue;
    float* total = partial + which * stride;
    for (int64_t block = 1; block < blocks; ++block) {
      const float* more = partial + (2 * block + which) * stride;
      for (int64_t i = begin; i < end; i += kLanes) store(total + i, load(total + i) + load(more + i));
    }
    const int dtype = which == 0 ? call.weight_dtype : call.bias_dtype;
    float_as_weight(total + begin, dtype, begin, end < call.columns ? end : call.columns, out);
  }
}

template <bool kCentered, bool kSummed, bool kStream, class T>
void backward_all(const NormBackward& call) {
  const int64_t columns = call.columns, stride = rounded_up(columns, 64);
  const int64_t least = (call.rows + kMostBlocks - 1) / kMostBlocks;
  const int64_t block_rows = rounded_up(least > kLeastRowsPerBlock ? least : kLeastRowsPerBlock, kBackwardRows);
  const int64_t blocks = (call.rows + block_rows - 1) / block_rows;
  float* weight = static_cast<float*>(scratch(stride * sizeof(float), 0));
  weight_as_float(call.weight, call.weight_dtype, columns, 1.0F, weight);
  float* partial = static_cast<float*>(scratch((blocks > 0 ? blocks : 1) * 2 * stride * sizeof(float), 1));
  if (blocks == 0) std::memset(partial, 0, 2 * stride * sizeof(float));
  const int threads = useful_threads(call.threads, call.rows * columns);
  parallel_for(blocks, threads, [&](int64_t block) {
    float* mine = partial + 2 * block * stride;
    std::memset(mine, 0, 2 * stride * sizeof(float));
    const BackwardRows<T> rows{static_cast<const T*>(call.x), static_cast<const T*>(call.dy),
                               static_cast<const T*>(call.dsummed), static_cast<T*>(call.dx),
                               weight, mine, mine + stride, columns};
    int64_t row = block * block_rows;
    const int64_t end = row + block_rows < call.rows ? row + block_rows : call.rows;
    for (; row + kBackwardRows <= end; row += kBackwardRows) {
      backward_rows<kCentered, kBackwardRows, kSummed, kStream>(call, rows, row);
    }
    for (; row < end; ++row) backward_rows<kCentered, 1, kSummed, kStream>(call, rows, row);
#if defined(__x86_64__)
    if (kStream) __builtin_ia32_sfence();
#endif
  });
  if (call.dweight == nullptr && call.dbias == nullptr) return;
  const int64_t chunk = 256, chunks = (stride + chunk - 1) / chunk;
  parallel_for(chunks, useful_threads(threads, blocks * stride), [&](int64_t task) {
    const int64_t end = (task + 1) * chunk < stride ? (task + 1) * chunk : stride;
    add_blocks(call, partial, blocks, stride, task * chunk, end);
  });
}

template <bool kCentered, class T>
void backward_typed(const NormBackward& call) {
  const bool aligned = reinterpret_cast<uintptr_t>(call.dx) % 64 == 0 && call.columns % kLanes == 0;
  const bool large = aligned && call.rows * call.columns * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  if (call.dsummed != nullptr) {
    return large ? backward_all<kCentered, true, true, T>(call) : backward_all<kCentered, true, false, T>(call);
  }
  return large ? backward_all<kCentered, false, true, T>(call) : backward_all<kCentered, false, false, T>(call);
}

template <bool kCentered>
void norm_backward(const NormBackward& call) {
  if (call.dtype == kFloat32) return backward_typed<kCentered, float>(call);
  if (call.dtype == kBFloat16) return backward_typed<kCentered, bfloat16>(call);
  return backward_typed<kCentered, float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
