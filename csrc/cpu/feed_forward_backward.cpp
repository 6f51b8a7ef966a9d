// Gradients of bias, activation and gate in one pass; the activation itself is made again, so it need not be kept.
#include <cstring>

#include "activation.h"
#include "blocks.h"
#include "row_tasks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

template <class T, int kActivation, bool kGated>
UNDIVIDED_INLINE void backward_row(const FeedForwardBackward& call, int64_t start, float* sums) {
  each_block(call.columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
    const int64_t at = start + i;
    const Block h = load_ahead(static_cast<const T*>(call.h) + at, n);
    const Block da = load_ahead(static_cast<const T*>(call.da) + at, n);
    const Activated first = Activation<kActivation, T>::of(h.a), second = Activation<kActivation, T>::of(h.b);
    Block a{first.value, second.value}, dh = da * Block{first.slope, second.slope};
    if constexpr (kGated) {
      const Block gate = load_ahead(static_cast<const T*>(call.gate) + at, n);
      store_some(static_cast<T*>(call.dgate) + at, da * a, n);
      a = a * gate;
      dh = dh * gate;
    }
    if (call.a != nullptr) store_some(static_cast<T*>(call.a) + at, a, n);
    store_some(static_cast<T*>(call.dh) + at, dh, n);
    if (sums != nullptr) store_block(sums + i, load_block(sums + i) + dh);
  });
}

template <class T, int kActivation, bool kGated>
void backward_all(const FeedForwardBackward& call) {
  const int64_t width = rounded_up(call.columns, kBlock);
  const Bands bands = bands_of(call.rows);
  const bool summing = call.dbias != nullptr;
  float* sums = summing ? static_cast<float*>(scratch(bands.count * width * sizeof(float), 1)) : nullptr;
  const int threads = useful_threads(call.threads, call.rows * call.columns);
  parallel_ranges(bands.count, threads, [&](int64_t band) {
    float* mine = summing ? sums + band * width : nullptr;
    if (summing) std::memset(mine, 0, width * sizeof(float));
    const int64_t begin = band * bands.rows;
    const int64_t end = begin + bands.rows < call.rows ? begin + bands.rows : call.rows;
    for (int64_t row = begin; row < end; ++row) {
      backward_row<T, kActivation, kGated>(call, row * call.columns, mine);
    }
  });
  if (!summing) return;
  each_part(width, bands.count, threads, [&](int64_t begin, int64_t end) {
    add_bands<T>(sums, bands.count, width, begin, end, call.columns, call.dtype, call.dbias);
  });
}

template <class T, int kActivation>
void backward_typed(const FeedForwardBackward& call) {
  return call.gate != nullptr ? backward_all<T, kActivation, true>(call) : backward_all<T, kActivation, false>(call);
}

template <class T>
void backward_of(const FeedForwardBackward& call) {
  if (call.activation == kRelu) return backward_typed<T, kRelu>(call);
  if (call.activation == kGelu) return backward_typed<T, kGelu>(call);
  if (call.activation == kGeluTanh) return backward_typed<T, kGeluTanh>(call);
  return backward_typed<T, kSilu>(call);
}

void feed_forward_backward(const FeedForwardBackward& call) {
  if (call.dtype == kFloat32) return backward_of<float>(call);
  if (call.dtype == kBFloat16) return backward_of<bfloat16>(call);
  return backward_of<float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
