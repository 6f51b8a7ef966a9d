// Results that are too large for the caches, stored past them.
#pragma once

#include "blocks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// Whether to store past the caches: where the matrices that a call reads and writes, all as large as `out`, take three
// quarters of the last-level cache. That needs rows of whole vectors at aligned addresses.
template <class T>
bool worth_streaming(const void* out, int64_t rows, int64_t columns, int matrices) {
  const int64_t bytes = matrices * rows * columns * static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(out) % 64 == 0 && columns % kBlock == 0 && 4 * bytes >= 3 * cache_bytes();
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
