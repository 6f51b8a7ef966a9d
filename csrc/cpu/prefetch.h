// Rows of memory that are brought into the second-level cache while others are worked on. Reaching past the end is
// harmless.
#pragma once

#include <cstdint>

#include "simd.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr int64_t kLine = 64;  // bytes

// Rows of one matrix, `lines` lines at a time, line after line.
struct Ahead {
  const char* rows = nullptr;
  int64_t stride = 0, width = 0, column = 0;  // bytes
  int lines = 0;                              // 0 for none

  Ahead() = default;
  template <class T>
  Ahead(const T* rows, int64_t stride, int64_t columns)
      : rows(reinterpret_cast<const char*>(rows)), stride(stride * sizeof(T)), width(columns * sizeof(T)) {}

  // `count` rows, in `times` calls of bring.
  void spread(int64_t count, int64_t times) {
    const int64_t all = rows == nullptr || times <= 0 ? 0 : count * ((width + kLine - 1) / kLine);
    lines = all == 0 ? 0 : static_cast<int>((all + times - 1) / times);
  }

  UNDIVIDED_INLINE void bring() {
    for (int i = 0; i < lines; ++i) bring_line();
  }

  // Whether the line was the last one of its row.
  UNDIVIDED_INLINE bool bring_line() {
    __builtin_prefetch(rows + column, 0, 2);
    column += kLine;
    if (column < width) return false;
    column = 0;
    rows += stride;
    return true;
  }
};

// The rows of some matrices, a few lines at a time: all at once would wait for memory as reading them does.
class LinesAhead {
 public:
  // The next `count` rows of T; what does not fit beside a task's own data is left out.
  template <class T>
  void add(const T* rows, int64_t stride, int64_t columns, int64_t count) {
    const Ahead matrix(rows, stride, columns);
    const int64_t bytes = count * matrix.width;
    if (bytes <= 0 || bytes_ + bytes > kMostBytes || matrices_ == kMost) return;
    bytes_ += bytes;
    list_[matrices_++] = {matrix, count};
  }

  UNDIVIDED_INLINE void bring() {
    if (at_ < matrices_) bring_some();
  }

 private:
  static constexpr int kMost = 16;
  static constexpr int64_t kMostBytes = 256 << 10;
  static constexpr int kLines = 16;  // for some 800 cycles of products

  __attribute__((noinline)) void bring_some() {
    for (int i = 0; i < kLines && at_ < matrices_; ++i) {
      Part& part = list_[at_];
      if (part.matrix.bring_line() && --part.count == 0) ++at_;
    }
  }

  struct Part {
    Ahead matrix;
    int64_t count;
  };
  Part list_[kMost];
  int matrices_ = 0, at_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace undivided::UNDIVIDED_VARIANT
