// What a part of the keys leaves of a running softmax, and how parts become out and lse (Dao et al. 2023, section 3.1).
#pragma once

#include <cmath>

#include "attention_finish.h"
#include "attention_memory.h"
#include "row_products.h"

namespace undivided::UNDIVIDED_VARIANT {

// The sums of the rows of one key head: row i * group + m is query i of the m-th of the heads that share it.
struct Sums {
  float* acc;    // (rows, width), in the order of panel_at
  float* total;  // (rows, kLanes)
  float* top;    // (rows,)

  static Sums at(void* memory, int64_t rows, int64_t width) {
    Arena arena(memory);
    Sums sums;
    arena.take(sums.acc, rows * width);
    arena.take(sums.total, rows * kLanes);
    arena.take(sums.top, rows);
    return sums;
  }
  static int64_t bytes(int64_t rows, int64_t width) {
    return round_up(rows * width * 4, 64) + round_up(rows * kLanes * 4, 64) + round_up(rows * 4, 64);
  }
  void start(int64_t rows, int64_t width) const {
    std::memset(acc, 0, rows * width * sizeof(float));
    std::memset(total, 0, rows * kLanes * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) top[r] = -kInfinity;
  }
};

// Adds the sums of another part.
inline void merge(const Sums& into, const Sums& part, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    const float a = into.top[r], b = part.top[r], top = b > a ? b : a;
    if (b == -kInfinity) continue;  // it saw nothing
    const float keep = std::exp2(a - top), add = std::exp2(b - top);
    auto both = [&](float* x, const float* y) { store(x, load(x) * keep + load(y) * add); };
    for (int64_t c = r * width; c < (r + 1) * width; c += kLanes) both(into.acc + c, part.acc + c);
    both(into.total + r * kLanes, part.total + r * kLanes);
    into.top[r] = top;
  }
}

// out and lse of all rows of a key head.
template <class T, class Word>
void finish(const AttentionForward& job, const Sequence& sequence, int64_t head_kv, const Sums& sums, int64_t width) {
  const int64_t group = job.call.nheads / job.call.nheads_kv, queries = job.call.seqlen_q;
  for (int64_t row = 0; row < group * queries; ++row) plain_order<T, Word>(sums.acc + row * width, width);
  for (int64_t m = 0; m < group; ++m) {
    for (int64_t i = 0; i < queries; i += kLanes) {
      const int rows = static_cast<int>(smaller(kLanes, queries - i));
      const int64_t first = i * group + m;
      Vec top = zeros(), total = zeros();
      for (int r = 0; r < rows; ++r) {
        top[r] = sums.top[first + r * group];
        total[r] = sum(load(sums.total + (first + r * group) * kLanes));
      }
      finish_rows<T>(job, sequence, head_kv * group + m, i, rows, top, total, sums.acc + first * width, group * width);
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
