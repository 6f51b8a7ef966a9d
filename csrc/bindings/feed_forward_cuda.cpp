// The feed-forward network on a Hopper GPU: everything by position. Addresses of absent tensors are 0; whoever builds
// without nvcc has no such function.
#include "registry.h"

#if UNDIVIDED_HAS_CUDA
#include "../cuda/feed_forward.h"

using undivided::pointer;
namespace cuda = undivided::cuda;

UNDIVIDED_BINDINGS(feed_forward_cuda, module) {
  pybind11::class_<cuda::FeedForwardSizes>(module, "CudaFeedForward", pybind11::module_local())
      .def(pybind11::init([](int dtype, int activation, int64_t rows, int32_t d_model, int32_t d_ff, int32_t device,
                             uintptr_t stream) {
        return cuda::FeedForwardSizes{static_cast<cuda::Dtype>(dtype), static_cast<cuda::Activation>(activation),
                                      rows, d_model, d_ff, device, pointer<void>(stream)};
      }));
  module.def("cuda_feed_forward_forward",
             [](const cuda::FeedForwardSizes& sizes, uintptr_t x, int64_t x_stride, uintptr_t w_in, int64_t w_in_stride,
                uintptr_t w_gate, int64_t w_gate_stride, uintptr_t b_in, uintptr_t h, uintptr_t g, uintptr_t a) {
               const cuda::FeedForwardForward job{
                   sizes,
                   {pointer<void>(x), x_stride},
                   {pointer<void>(w_in), w_in_stride},
                   {pointer<void>(w_gate), w_gate_stride},
                   pointer<void>(b_in),
                   pointer<void>(h),
                   pointer<void>(g),
                   pointer<void>(a),
               };
               undivided::without_lock(&cuda::feed_forward_forward, job);
             });
  module.def("cuda_feed_forward_backward",
             [](const cuda::FeedForwardSizes& sizes, uintptr_t dout, int64_t dout_stride, uintptr_t w_out,
                int64_t w_out_stride, uintptr_t h, uintptr_t g, uintptr_t dh, uintptr_t dg, uintptr_t a,
                uintptr_t sums) {
               const cuda::FeedForwardBackward job{
                   sizes,
                   {pointer<void>(dout), dout_stride},
                   {pointer<void>(w_out), w_out_stride},
                   pointer<void>(h),
                   pointer<void>(g),
                   pointer<void>(dh),
                   pointer<void>(dg),
                   pointer<void>(a),
                   pointer<float>(sums),
               };
               undivided::without_lock(&cuda::feed_forward_backward, job);
             });
}
#endif
