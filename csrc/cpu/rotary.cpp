// Rotary position embedding (Su et al. 2021, section 3.2): (x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin). A turn
// by the negative angle is its gradient. x is read once and y written once; all heads of a token share its cosines.
#include "rotary.h"

#include "blocks.h"
#include "row_tasks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {
namespace {

// The next values of a table, as a block of T orders them.
template <class T>
UNDIVIDED_INLINE Block angles(const float* table, int n) {
  if constexpr (kEvenOdd<T>) {
    float values[kBlock] = {};
    std::memcpy(values, table, static_cast<size_t>(n) * sizeof(float));
    to_block_order<T>(values);
    return load_block(values);
  } else {
    return load_some(table, n);
  }
}

// All heads of one token. A position that the tables do not have gives NaN, never what lies beyond them.
template <class T>
UNDIVIDED_INLINE void turn_token(const Rotary& call, const T* x, T* y, int64_t at) {
  const int64_t half = call.half;
  const bool known = at >= 0 && at < call.longest;
  each_block(half, [&](int64_t i, int n) {
    Block c = block_of(__builtin_nanf("")), s = c;
    if (known) {
      c = angles<T>(call.cos + at * half + i, n);
      s = angles<T>(call.sin + at * half + i, n);
    }
    if (call.inverse) s = block_of(0.0F) - s;
    for (int64_t h = 0; h < call.nheads; ++h) {
      const T* from = x + h * call.x_h + i;
      T* to = y + h * 2 * half + i;
      const Block first = load_some(from, n), second = load_some(from + half, n);
      store_some(to, first * c - second * s, n);
      store_some(to + half, second * c + first * s, n);
    }
  });
}

inline int64_t position_of(const Rotary& call, int64_t b, int64_t s) {
  if (call.positions != nullptr) return call.positions[b * call.positions_b + s * call.positions_s];
  return (call.starts == nullptr ? 0 : call.starts[b]) + call.shift + s;
}

template <class T>
void turn(const Rotary& call) {
  const int64_t tokens = call.batch * call.seqlen, width = call.nheads * 2 * call.half;
  const int threads = useful_threads(call.threads, tokens * width);
  // As many tasks as threads: then a thread meets the rows that the op before left in its own cache.
  parallel_for(threads, threads, [&](int64_t task) {
    const int64_t begin = tokens * task / threads, end = tokens * (task + 1) / threads;
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / call.seqlen, s = token % call.seqlen;
      const T* x = static_cast<const T*>(call.x) + b * call.x_b + s * call.x_s;
      turn_token(call, x, static_cast<T*>(call.y) + token * width, position_of(call, b, s));
    }
  });
}

}  // namespace

void rotary(const Rotary& call) {
  if (call.dtype == kFloat32) return turn<float>(call);
  if (call.dtype == kBFloat16) return turn<bfloat16>(call);
  return turn<float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
