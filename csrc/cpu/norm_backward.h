// Backward of layer norm (kCentered) and RMS norm. With xhat = (x - mean) * rstd and g = dy * weight:
//
//   dx = rstd * (g - mean_of_row(g) - xhat * mean_of_row(g * xhat)) + dsummed      (RMS norm: without mean_of_row(g))
//   dweight = sum over rows of dy * xhat,  dbias = sum over rows of dy
//
// The sums over rows are made in bands (row_tasks.h).
#pragma once

#include "norm_rows.h"

namespace undivided::UNDIVIDED_VARIANT {

template <class T>
struct BackwardRows {
  const T* x;
  const T* dy;
  const T* dsummed;
  T* dx;
  const float* weight;
  float* dweight;  // this band's sums
  float* dbias;
  int64_t columns;
};

// Adds kRows rows to dweight and dbias, and gives each row's means of g and of g * xhat.
template <bool kCentered, int kRows, class T>
UNDIVIDED_INLINE void sum_rows(const BackwardRows<T>& rows, const float* mean, const float* rstd, float* mean_g,
                               float* mean_gx) {
  Block center[kRows], scale[kRows], g_total[kRows], gx_total[kRows];
  for (int r = 0; r < kRows; ++r) {
    center[r] = block_of(kCentered ? mean[r] : 0.0F);
    scale[r] = block_of(rstd[r]);
    g_total[r] = gx_total[r] = block_of(0.0F);
  }
  each_block(rows.columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
    const Block weight = in_register(load_block(rows.weight + i));
    Block dweight = load_block(rows.dweight + i), dbias = block_of(0.0F);
    if constexpr (kCentered) dbias = load_block(rows.dbias + i);
    for (int r = 0; r < kRows; ++r) {
      const Block dy = load_ahead(rows.dy + r * rows.columns + i, n);
      Block xhat = load_ahead(rows.x + r * rows.columns + i, n);
      if constexpr (kCentered) xhat = xhat - center[r];
      xhat = xhat * scale[r];
      const Block dy_xhat = dy * xhat;
      if constexpr (kCentered) g_total[r] = g_total[r] + dy * weight;
      gx_total[r] = gx_total[r] + dy_xhat * weight;
      dweight = dweight + dy_xhat;
      if constexpr (kCentered) dbias = dbias + dy;
    }
    store_block(rows.dweight + i, dweight);
    if constexpr (kCentered) store_block(rows.dbias + i, dbias);
  });
  const float over_columns = 1.0F / static_cast<float>(rows.columns);
  for (int r = 0; r < kRows; ++r) {
    mean_g[r] = kCentered ? sum(g_total[r]) * over_columns : 0.0F;
    mean_gx[r] = sum(gx_total[r]) * over_columns;
  }
}

// dx as g * rstd + (x - mean) * slope + shift, where slope and shift are the same for a whole row.
template <bool kCentered, int kRows, bool kSummed, bool kStream, class T>
UNDIVIDED_INLINE void input_gradient(const BackwardRows<T>& rows, const float* mean, const float* rstd,
                                     const float* mean_g, const float* mean_gx) {
  Block scale[kRows], shift[kRows], slope[kRows], center[kRows];
  for (int r = 0; r < kRows; ++r) {
    const float per_x = -mean_gx[r] * rstd[r] * rstd[r];
    scale[r] = block_of(rstd[r]);
    slope[r] = block_of(per_x);
    shift[r] = block_of(kCentered ? -mean_g[r] * rstd[r] : 0.0F);
    center[r] = block_of(kCentered ? mean[r] : 0.0F);
  }
  each_block(rows.columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
    const Block weight = load_block(rows.weight + i);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * rows.columns + i;
      Block dx = load_some(rows.x + at, n);
      if constexpr (kCentered) dx = (dx - center[r]) * slope[r] + shift[r];
      if constexpr (!kCentered) dx = dx * slope[r];
      dx = dx + load_some(rows.dy + at, n) * weight * scale[r];
      if constexpr (kSummed) dx = dx + load_ahead(rows.dsummed + at, n);
      store_or_stream<kStream>(rows.dx + at, dx, n);
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
  float mean_g[kRows], mean_gx[kRows];
  sum_rows<kCentered, kRows>(rows, mean, call.rstd + row, mean_g, mean_gx);
  input_gradient<kCentered, kRows, kSummed, kStream>(rows, mean, call.rstd + row, mean_g, mean_gx);
}

template <bool kCentered, bool kSummed, bool kStream, int kRows, class T>
void backward_bands(const NormBackward& call) {
  const int64_t columns = call.columns, stride = rounded_up(columns, kBlock);
  const Bands bands = bands_of(call.rows);
  float* weight = static_cast<float*>(scratch(stride * sizeof(float), 0));
  read_columns<T>(call.weight, call.weight_dtype, columns, 1.0F, weight);
  float* sums = static_cast<float*>(scratch(bands.count * 2 * stride * sizeof(float), 1));
  const int threads = useful_threads(call.threads, call.rows * columns);
  parallel_ranges(bands.count, threads, [&](int64_t band) {
    float* mine = sums + 2 * band * stride;
    std::memset(mine, 0, 2 * stride * sizeof(float));
    const BackwardRows<T> rows{static_cast<const T*>(call.x),       static_cast<const T*>(call.dy),
                               static_cast<const T*>(call.dsummed), static_cast<T*>(call.dx),
                               weight, mine, mine + stride, columns};
    int64_t row = band * bands.rows;
    const int64_t end = row + bands.rows < call.rows ? row + bands.rows : call.rows;
    for (; row + kRows <= end; row += kRows) backward_rows<kCentered, kRows, kSummed, kStream>(call, rows, row);
    for (; row < end; ++row) backward_rows<kCentered, 1, kSummed, kStream>(call, rows, row);
    finish_streaming<kStream>();
  });
  if (call.dweight == nullptr && call.dbias == nullptr) return;
  each_part(stride, 2 * bands.count, threads, [&](int64_t begin, int64_t end) {
    const auto add = [&](float* first, int dtype, void* out) {
      if (out != nullptr) add_bands<T>(first, bands.count, 2 * stride, begin, end, columns, dtype, out);
    };
    add(sums, call.weight_dtype, call.dweight);
    add(sums + stride, call.bias_dtype, call.dbias);
  });
}

// From the third-level cache or memory one row at a time is best, as forward, though nothing goes past the caches: on
// Zen 5 1.05 to 1.5 times as fast with 512 to 1,024 columns; wide rows of float32 are 0.9 to 1.0 times.
template <class T>
bool row_by_row(const NormBackward& call) {
  constexpr int64_t kCached = 1 << 20, kWide = 16384;  // bytes: of x, where x, dy and dx fill two caches; of a row
  const int64_t row = call.columns * static_cast<int64_t>(sizeof(T));
  return call.rows * row >= kCached && row < kWide;
}

// Where the sums of both weights and the weight itself fill the first-level cache, two rows at a time read and write
// them half as often. Bfloat16 of 4,096 columns on Zen 5: layer norm 1.03 to 1.11 times as fast as row by row; RMS
// norm, whose sums are half as large, 0.94 to 1.0; layer norm of 2,048 columns 0.9 to 1.07.
template <bool kCentered, class T>
bool sums_are_wide(const NormBackward& call) {
  return kCentered && sizeof(T) == 2 && call.columns >= 4096;
}

template <bool kCentered, bool kSummed, bool kStream, class T>
void backward_all(const NormBackward& call) {
  constexpr int kTogether = rows_together(kStream);
  if (sums_are_wide<kCentered, T>(call)) return backward_bands<kCentered, kSummed, kStream, 2, T>(call);
  if (kTogether > 1 && row_by_row<T>(call)) return backward_bands<kCentered, kSummed, kStream, 1, T>(call);
  return backward_bands<kCentered, kSummed, kStream, kTogether, T>(call);
}

template <bool kCentered, class T>
void backward_typed(const NormBackward& call) {
  const bool large = worth_streaming<T>(call.dx, call.rows, call.columns);
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
