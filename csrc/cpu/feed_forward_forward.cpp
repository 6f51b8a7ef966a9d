// Bias, activation and gate in one pass over what the matrix product left.
#include "activation.h"
#include "blocks.h"
#include "row_tasks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

template <class T, int kActivation, bool kGated>
void forward_all(const FeedForwardForward& call) {
  const int64_t columns = call.columns;
  float* bias = nullptr;
  if (call.bias != nullptr) {
    bias = static_cast<float*>(scratch(rounded_up(columns, kBlock) * sizeof(float), 0));
    read_columns<T>(call.bias, call.dtype, columns, 0.0F, bias);
  }
  const int threads = useful_threads(call.threads, call.rows * columns);
  parallel_for(threads, threads, [&](int64_t task) {
    const int64_t end = call.rows * (task + 1) / threads;
    for (int64_t row = call.rows * task / threads; row < end; ++row) {
      const int64_t start = row * columns;
      each_block(columns, [&](int64_t i, int n) UNDIVIDED_INLINE_LAMBDA {
        Block h = load_ahead(static_cast<const T*>(call.h) + start + i, n);
        if (bias != nullptr) h = h + load_block(bias + i);
        if (call.kept != nullptr && bias != nullptr) store_some(static_cast<T*>(call.kept) + start + i, h, n);
        Block a{Activation<kActivation, T>::of(h.a).value, Activation<kActivation, T>::of(h.b).value};
        if constexpr (kGated) a = a * load_ahead(static_cast<const T*>(call.gate) + start + i, n);
        store_some(static_cast<T*>(call.a) + start + i, a, n);
      });
    }
  });
}

template <class T, int kActivation>
void forward_typed(const FeedForwardForward& call) {
  return call.gate != nullptr ? forward_all<T, kActivation, true>(call) : forward_all<T, kActivation, false>(call);
}

template <class T>
void forward_of(const FeedForwardForward& call) {
  if (call.activation == kRelu) return forward_typed<T, kRelu>(call);
  if (call.activation == kGelu) return forward_typed<T, kGelu>(call);
  if (call.activation == kGeluTanh) return forward_typed<T, kGeluTanh>(call);
  return forward_typed<T, kSilu>(call);
}

void feed_forward_forward(const FeedForwardForward& call) {
  if (call.dtype == kFloat32) return forward_of<float>(call);
  if (call.dtype == kBFloat16) return forward_of<bfloat16>(call);
  return forward_of<float16>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
