// Attention on a Hopper GPU: everything by position. Addresses of absent tensors are 0; whoever builds without nvcc has
// no such function.
#include "registry.h"

#if UNDIVIDED_HAS_CUDA
#include "../cuda/attention.h"

namespace {

using undivided::pointer;
namespace cuda = undivided::cuda;

cuda::Rows rows(uintptr_t data, int64_t b, int64_t s, int64_t h) { return {pointer<void>(data), b, s, h}; }

}  // namespace

UNDIVIDED_BINDINGS(attention_cuda, module) {
  pybind11::class_<cuda::AttentionForward>(module, "CudaAttention", pybind11::module_local())
      // A bound of the window below 0 is none, a softcap of 0 is off.
      .def(pybind11::init([](uintptr_t q, int64_t q_b, int64_t q_s, int64_t q_h,                      //
                                          uintptr_t k, int64_t k_b, int64_t k_s, int64_t k_h,                      //
                                          uintptr_t v, int64_t v_b, int64_t v_s, int64_t v_h,                      //
                                          uintptr_t out, int64_t out_b, int64_t out_s, int64_t out_h,              //
                                          uintptr_t lse, int64_t lse_b, int64_t lse_h, int dtype, int32_t batch,   //
                                          int32_t nheads, int32_t nheads_kv, int32_t head_dim, int32_t seqlen_q,   //
                                          int32_t seqlen_k, int64_t rows_q, int64_t rows_k,                        //
                                          uintptr_t key_lengths, uintptr_t query_lengths, uintptr_t cu_q,          //
                                          uintptr_t cu_k, uintptr_t shifts, bool own_shift, int64_t shift,         //
                                          int64_t left, int64_t right, uintptr_t values, int32_t span,             //
                                          uintptr_t slopes, int64_t slopes_b, int64_t slopes_h, uintptr_t sinks,   //
                                          float scale, float softcap, uintptr_t counter, int32_t device,           //
                                          uintptr_t stream) {
    cuda::AttentionForward job{};
    job.q = rows(q, q_b, q_s, q_h);
    job.k = rows(k, k_b, k_s, k_h);
    job.v = rows(v, v_b, v_s, v_h);
    job.out = rows(out, out_b, out_s, out_h);
    job.lse = pointer<float>(lse);
    job.lse_b = lse_b;
    job.lse_h = lse_h;
    job.dtype = static_cast<cuda::Dtype>(dtype);
    job.batch = batch;
    job.nheads = nheads;
    job.nheads_kv = nheads_kv;
    job.head_dim = head_dim;
    job.seqlen_q = seqlen_q;
    job.seqlen_k = seqlen_k;
    job.rows_q = rows_q;
    job.rows_k = rows_k;
    job.key_lengths = pointer<int32_t>(key_lengths);
    job.query_lengths = pointer<int32_t>(query_lengths);
    job.cu_q = pointer<int32_t>(cu_q);
    job.cu_k = pointer<int32_t>(cu_k);
    job.shifts = pointer<int32_t>(shifts);
    job.own_shift = own_shift;
    job.shift = shift;
    job.has_left = left >= 0;
    job.left = left;
    job.has_right = right >= 0;
    job.right = right;
    job.values = pointer<float>(values);
    job.span = span;
    job.slopes = pointer<float>(slopes);
    job.slopes_b = slopes_b;
    job.slopes_h = slopes_h;
    job.sinks = pointer<float>(sinks);
    job.scale = scale;
    job.softcap = softcap;
    job.counter = pointer<int32_t>(counter);
    job.device = device;
    job.stream = pointer<void>(stream);
    return job;
  }));
  module.def("cuda_attention_forward", [](const cuda::AttentionForward& job) {
    undivided::without_lock(&cuda::attention_forward, job);
  });
  module.def("cuda_attention_backward", [](const cuda::AttentionForward& call,                                     //
                                           uintptr_t dout, int64_t dout_b, int64_t dout_s, int64_t dout_h,         //
                                           uintptr_t dq, int64_t dq_b, int64_t dq_s, int64_t dq_h,                 //
                                           uintptr_t dk, int64_t dk_b, int64_t dk_s, int64_t dk_h,                 //
                                           uintptr_t dv, int64_t dv_b, int64_t dv_s, int64_t dv_h, uintptr_t dlse, //
                                           uintptr_t lse2, uintptr_t delta, uintptr_t sums,                     //
                                           uintptr_t by_distance, int64_t rows_padded) {
    cuda::AttentionBackward job{};
    job.call = call;
    job.dout = rows(dout, dout_b, dout_s, dout_h);
    job.dq = rows(dq, dq_b, dq_s, dq_h);
    job.dk = rows(dk, dk_b, dk_s, dk_h);
    job.dv = rows(dv, dv_b, dv_s, dv_h);
    job.dlse = pointer<float>(dlse);
    job.lse2 = pointer<float>(lse2);
    job.delta = pointer<float>(delta);
    job.sums = pointer<float>(sums);
    job.by_distance = pointer<float>(by_distance);
    job.rows_padded = rows_padded;
    undivided::without_lock(&cuda::attention_backward, job);
  });
}
#endif
