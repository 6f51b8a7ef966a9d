// Rotary position embedding (Su et al. 2021, section 3.2): (x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin). A turn
// by the negative angle is its gradient. x is read once and y written once; all heads of a token share its cosines.
#include "rotary.h"

#include "row_tasks.h"
#include "streaming.h"

namespace undivided::UNDIVIDED_VARIANT {
namespace {

// The angles of one token, as blocks of T order them; padded to whole blocks. A position that the tables do not have
// gives NaN, never what lies beyond them.
template <class T>
void read_angles(const Rotary& call, int64_t at, float* cosine, float* sine) {
  const bool known = at >= 0 && at < call.longest;
  const float nothing = __builtin_nanf("");
  const float* row = known ? call.cos + at * call.half : nullptr;
  read_columns<T>(row, kFloat32, call.half, nothing, cosine);
  row = known ? call.sin + at * call.half : nullptr;
  read_columns<T>(row, kFloat32, call.half, nothing, sine);
  for (int64_t i = 0; call.inverse && i < call.half; i += kBlock) {
    store_block(sine + i, block_of(0.0F) - load_block(sine + i));
  }
}

// All heads of one token.
template <bool kStream, class T>
UNDIVIDED_INLINE void turn_token(const Rotary& call, const T* x, T* y, const float* cosine, const float* sine) {
  const int64_t half = call.half;
  for (int64_t h = 0; h < call.nheads; ++h, x += call.x_h, y += 2 * half) {
    each_block(half, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
      const Block c = load_block(cosine + i), s = load_block(sine + i);
      const Block first = load_ahead(x + i, n), second = load_ahead(x + half + i, n);
      store_or_stream<kStream>(y + i, first * c - second * s, n);
      store_or_stream<kStream>(y + half + i, second * c + first * s, n);
    });
  }
}

inline int64_t position_of(const Rotary& call, int64_t b, int64_t s) {
  if (call.positions != nullptr) return call.positions[b * call.positions_b + s * call.positions_s];
  return (call.starts == nullptr ? 0 : call.starts[b]) + call.shift + s;
}

template <bool kStream, class T>
void turn_all(const Rotary& call) {
  const int64_t tokens = call.batch * call.seqlen, width = call.nheads * 2 * call.half;
  const int64_t padded = rounded_up(call.half, kBlock);
  const int threads = useful_threads(call.threads, tokens * width);
  // As many tasks as threads: then a thread meets the rows that the op before left in its own cache.
  parallel_for(threads, threads, [&](int64_t task) {
    float* cosine = static_cast<float*>(scratch(2 * padded * sizeof(float), 0));
    float* sine = cosine + padded;
    const int64_t begin = tokens * task / threads, end = tokens * (task + 1) / threads;
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / call.seqlen, s = token % call.seqlen;
      const T* x = static_cast<const T*>(call.x) + b * call.x_b + s * call.x_s;
      read_angles<T>(call, position_of(call, b, s), cosine, sine);
      turn_token<kStream>(call, x, static_cast<T*>(call.y) + token * width, cosine, sine);
    }
    finish_streaming<kStream>();
  });
}

template <class T>
void turn(const Rotary& call) {
  const int64_t rows = call.batch * call.seqlen * call.nheads * 2;  // each half a row
  return worth_streaming<T>(call.y, rows, call.half, 2) ? turn_all<true, T>(call) : turn_all<false, T>(call);
}

}  // namespace

void rotary(const Rotary& call) {
  if (call.dtype == kFloat32) return turn<float>(call);
  if (call.dtype == kBFloat16) return turn<bfloat16>(call);
  return turn<float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
