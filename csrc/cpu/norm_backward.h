// Backward of layer norm (kCentered) and RMS norm. With xhat = (x - mean) * rstd and g = dy * weight:
//
//   dx = rstd * (g - mean_of_row(g) - xhat * mean_of_row(g * xhat)) + dsummed      (RMS norm: without mean_of_row(g))
//   dweight = sum over rows of dy * xhat,  dbias = sum over rows of dy
//
// The sums over rows are made in bands (row_tasks.h).
#pragma once

#include "blocks.h"
#include "norm.h"
#include "row_tasks.h"
#include "streaming.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

template <class T>
struct Band {
  const T* x;  // whole matrices
  const T* dy;
  const T* dsummed;
  T* dx;
  const float* mean;
  const float* rstd;
  const float* weight;
  float* dweight;  // this band's sums
  float* dbias;
  int64_t columns;
};

// What the sums over a row come to in dx = dy * weight * rstd + (x - mean) * slope + shift.
struct RowNumbers {
  float slope, shift;
};

enum Work { kSum = 1, kWrite = 2 };

// One walk over the columns. kSum: adds kRows rows from `to_sum` on to dweight and dbias, and leaves what their sums
// come to in `numbers`. kWrite: dx of kRows rows from `to_write` on, of which `numbers` holds that until then.
template <int kWork, bool kCentered, bool kSummed, bool kStream, int kRows, class T>
UNDIVIDED_INLINE void walk(const Band<T>& band, int64_t to_sum, int64_t to_write, RowNumbers* numbers) {
  const int64_t columns = band.columns;
  Block sum_mean[kRows], sum_rstd[kRows], g_total[kRows], gx_total[kRows];
  for (int r = 0; (kWork & kSum) && r < kRows; ++r) {
    sum_mean[r] = block_of(kCentered ? band.mean[to_sum + r] : 0.0F);
    sum_rstd[r] = block_of(band.rstd[to_sum + r]);
    g_total[r] = gx_total[r] = block_of(0.0F);
  }
  Block dx_mean[kRows], dx_rstd[kRows], slope[kRows], shift[kRows];
  for (int r = 0; (kWork & kWrite) && r < kRows; ++r) {
    dx_mean[r] = block_of(kCentered ? band.mean[to_write + r] : 0.0F);
    dx_rstd[r] = block_of(band.rstd[to_write + r]);
    slope[r] = block_of(numbers[r].slope);
    shift[r] = block_of(numbers[r].shift);
  }
  each_block(columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
    const Block weight = in_register(load_block(band.weight + i));
    if constexpr ((kWork & kSum) != 0) {
      Block dweight = load_block(band.dweight + i), dbias = block_of(0.0F);
      if constexpr (kCentered) dbias = load_block(band.dbias + i);
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = (to_sum + r) * columns + i;
        const Block dy = load_ahead(band.dy + at, n);
        Block xhat = load_ahead(band.x + at, n);
        if constexpr (kCentered) xhat = xhat - sum_mean[r];
        xhat = xhat * sum_rstd[r];
        const Block dy_xhat = dy * xhat;
        if constexpr (kCentered) g_total[r] = g_total[r] + dy * weight;
        gx_total[r] = gx_total[r] + dy_xhat * weight;
        dweight = dweight + dy_xhat;
        if constexpr (kCentered) dbias = dbias + dy;
      }
      store_block(band.dweight + i, dweight);
      if constexpr (kCentered) store_block(band.dbias + i, dbias);
    }
    if constexpr ((kWork & kWrite) != 0) {
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = (to_write + r) * columns + i;
        Block dx = load_some(band.x + at, n);
        if constexpr (kCentered) dx = (dx - dx_mean[r]) * slope[r] + shift[r];
        if constexpr (!kCentered) dx = dx * slope[r];
        dx = dx + load_some(band.dy + at, n) * weight * dx_rstd[r];
        if constexpr (kSummed) dx = dx + load_ahead(band.dsummed + at, n);
        if constexpr (kWork == (kSum | kWrite) && !kStream) prefetch_block(band.dx + at + kAhead<T>);
        store_or_stream<kStream>(band.dx + at, dx, n);
      }
    }
  });
  const float over_columns = 1.0F / static_cast<float>(columns);
  for (int r = 0; (kWork & kSum) && r < kRows; ++r) {
    const float scaled = band.rstd[to_sum + r] * over_columns;
    numbers[r].slope = -sum(gx_total[r]) * scaled * band.rstd[to_sum + r];
    numbers[r].shift = kCentered ? -sum(g_total[r]) * scaled : 0.0F;
  }
}

// Where a band begins and ends: not in line, as code that is rarely run.
template <int kWork, bool kCentered, bool kSummed, bool kStream, int kRows, class T>
__attribute__((noinline)) void walk_once(const Band<T>& band, int64_t row, RowNumbers* numbers) {
  walk<kWork, kCentered, kSummed, kStream, kRows>(band, row, row, numbers);
}

// As many whole groups of kRows rows as [row, end) has; gives the first row that is left. kMerged: the dx of a group
// is written while the next group is summed up, so that a core waits for sums once in a walk of both, reads the weight
// once, and asks the caches for rows evenly.
template <bool kCentered, bool kSummed, bool kStream, int kRows, bool kMerged, class T>
UNDIVIDED_INLINE int64_t groups(const Band<T>& band, int64_t row, int64_t end) {
  RowNumbers numbers[kRows];
  if (row + kRows > end) return row;
  walk_once<kSum, kCentered, kSummed, kStream, kRows>(band, row, numbers);
  for (; row + 2 * kRows <= end; row += kRows) {
    const int64_t next = row + kRows;
    if constexpr (kMerged) {
      walk<kSum | kWrite, kCentered, kSummed, kStream, kRows>(band, next, row, numbers);
    } else {
      walk<kWrite, kCentered, kSummed, kStream, kRows>(band, row, row, numbers);
      walk<kSum, kCentered, kSummed, kStream, kRows>(band, next, next, numbers);
    }
  }
  walk_once<kWrite, kCentered, kSummed, kStream, kRows>(band, row, numbers);
  return row + kRows;
}

template <bool kCentered, bool kSummed, bool kStream, int kRows, bool kMerged, class T>
void backward_bands(const NormBackward& call) {
  const int64_t columns = call.columns, stride = rounded_up(columns, kBlock);
  const Bands bands = bands_of(call.rows);
  float* weight = static_cast<float*>(scratch(stride * sizeof(float), 0));
  read_columns<T>(call.weight, call.weight_dtype, columns, 1.0F, weight);
  float* sums = static_cast<float*>(scratch(bands.count * 2 * stride * sizeof(float), 1));
  const int threads = useful_threads(call.threads, call.rows * columns);
  parallel_ranges(bands.count, threads, [&](int64_t task) {
    float* mine = sums + 2 * task * stride;
    std::memset(mine, 0, 2 * stride * sizeof(float));
    const Band<T> band{static_cast<const T*>(call.x),
                       static_cast<const T*>(call.dy),
                       static_cast<const T*>(call.dsummed),
                       static_cast<T*>(call.dx),
                       call.mean,
                       call.rstd,
                       weight,
                       mine,
                       mine + stride,
                       columns};
    const int64_t first = task * bands.rows, end = first + bands.rows < call.rows ? first + bands.rows : call.rows;
    for (int64_t row = groups<kCentered, kSummed, kStream, kRows, kMerged>(band, first, end); row < end; ++row) {
      RowNumbers numbers;
      walk_once<kSum, kCentered, kSummed, kStream, 1>(band, row, &numbers);
      walk_once<kWrite, kCentered, kSummed, kStream, 1>(band, row, &numbers);
    }
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

// How rows are worked on, as measured on Zen 5 with 128 to 8,192 columns (benchmarks/rooflines.md). The results are the
// same to the bit.
template <bool kCentered, bool kSummed, bool kStream, class T>
void backward_all(const NormBackward& call) {
  // Bytes: of x, where x, dy and dx fill two second-level caches; of narrow and wide rows; of a band's sums.
  constexpr int64_t kCached = 1 << 20, kNarrow = 4 << 10, kWide = 16 << 10, kWideSums = 32 << 10;
  const int64_t row = call.columns * static_cast<int64_t>(sizeof(T));
  const int64_t sums = call.columns * static_cast<int64_t>(sizeof(float)) * (kCentered ? 2 : 1);
  const bool cached = !kStream && call.rows * row < kCached;
  // Where x and dy of both groups fit the first-level cache beside the sums and the weight.
  if constexpr (!kStream) {
    if (cached && row <= kNarrow / 4) return backward_bands<kCentered, kSummed, kStream, 2, true, T>(call);
  }
  if (row <= kNarrow) return backward_bands<kCentered, kSummed, kStream, 1, true, T>(call);
  // Together the sums are read and written less often; one at a time, rows are one stream to fetch. Past the caches
  // it counts more that rows are asked for evenly.
  if (row >= kWide || sums >= kWideSums) {
    return backward_bands<kCentered, kSummed, kStream, kStream ? 2 : 4, kStream, T>(call);
  }
  if (cached) return backward_bands<kCentered, kSummed, kStream, 2, false, T>(call);
  return backward_bands<kCentered, kSummed, kStream, 1, false, T>(call);
}

template <bool kCentered, class T>
void backward_typed(const NormBackward& call) {
  const bool large = worth_streaming<T>(call.dx, call.rows, call.columns, call.dsummed == nullptr ? 3 : 4);
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
