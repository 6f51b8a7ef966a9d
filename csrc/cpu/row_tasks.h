// How rows go to threads, and sums over rows that are the same to the bit whatever the number of threads: they are
// made in bands of rows whose borders depend on the shape alone, and the bands are added in order.
#pragma once

#include "blocks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// A call with fewer elements than this for each thread is over before another thread has woken up: a second one costs 4
// microseconds on Emerald Rapids, half of what such a call takes.
constexpr int64_t kElementsPerThread = 32768;
// A band costs what some ten rows cost: its sums come from the cache of the core that added them up last. With twice as
// many bands of half the rows norms are 0.75 to 1.05 times as fast backward, on two threads of Zen 5.
constexpr int64_t kMostBands = 32;
constexpr int64_t kLeastRowsPerBand = 32;

inline int useful_threads(int threads, int64_t elements) {
  const int64_t most = elements / kElementsPerThread;
  return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

struct Bands {
  int64_t rows;   // of each band but the last, even
  int64_t count;  // at least 1
};

inline Bands bands_of(int64_t rows) {
  const int64_t least = (rows + kMostBands - 1) / kMostBands;
  const int64_t height = rounded_up(least > kLeastRowsPerBand ? least : kLeastRowsPerBand, 2);
  return {height, rows > 0 ? (rows + height - 1) / height : 1};
}

// Adds the bands' sums of the columns [begin, end) and rounds once, to `dtype`. Band b's sums, in the order of blocks
// of T, start at sums + b * stride; begin and end are whole numbers of blocks.
template <class T>
void add_bands(float* sums, int64_t bands, int64_t stride, int64_t begin, int64_t end, int64_t columns, int dtype,
               void* out) {
  for (int64_t band = 1; band < bands; ++band) {
    const float* more = sums + band * stride;
    for (int64_t i = begin; i < end; i += kBlock) store_block(sums + i, load_block(sums + i) + load_block(more + i));
  }
  write_columns<T>(sums, dtype, begin, end < columns ? end : columns, out);
}

// add(begin, end) for parts of [0, width), in parallel.
template <class Add>
void each_part(int64_t width, int64_t bands, int threads, Add add) {
  const int64_t part = 256, parts = (width + part - 1) / part;
  parallel_for(parts, useful_threads(threads, bands * width), [&](int64_t task) {
    add(task * part, (task + 1) * part < width ? (task + 1) * part : width);
  });
}

}  // namespace undivided::UNDIVIDED_VARIANT
