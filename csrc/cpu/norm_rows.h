// What the forward and backward of both norms share.
#pragma once

#include "blocks.h"
#include "norm.h"
#include "row_tasks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// Rows that are worked on together: they share the loads of the weight, and their sums need not wait for one another.
// Measured on Zen 4, float32: 2 beats 1 by 10 to 25 % while rows are in the second-level cache, 4 is no better (x, dy
// and the weight gradients of 1024 columns no longer fit in the first). From memory 1 is best: one stream to prefetch.
constexpr int rows_together(bool streaming) { return streaming ? 1 : 2; }

// Whether to store past the caches; that needs rows of whole vectors at aligned addresses.
template <class T>
bool worth_streaming(const void* out, int64_t rows, int64_t columns) {
  return reinterpret_cast<uintptr_t>(out) % 64 == 0 && columns % kBlock == 0 &&
         rows * columns * static_cast<int64_t>(sizeof(T)) >= streaming_bytes();
}

template <bool kStream, class T>
UNDIVIDED_INLINE void store_or_stream(T* p, Block x, int n) {
  if constexpr (kStream) {
    stream_block(p, x);
  } else {
    store_some(p, x, n);
  }
}

// Streaming stores are ordered with nothing else; the thread that reads the rows next must find them written.
template <bool kStream>
UNDIVIDED_INLINE void finish_streaming() {
#if defined(__AVX2__)
  if constexpr (kStream) _mm_sfence();
#endif
}

}  // namespace undivided::UNDIVIDED_VARIANT
