// Starts the attention backward on a Hopper GPU: what a row needs, the five products, sums to dq.
#include "attention_launch.cuh"
#include "runtime.h"
#include "tensor_map.h"

namespace undivided::cuda {
namespace {

template <class K>
void launch(const AttentionBackward& job) {
  constexpr int bytes = sizeof(BackwardShared<K>);
  static_assert(bytes <= 227 * 1024, "more shared memory than a block can have");
  const AttentionForward& call = job.call;
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const auto kernel = attention_backward_kernel<K>;
  const Schedule schedule = backward_schedule_of(call);
  const Grid rows = grid_of_rows(call);
  const dim3 grid(rows.x, rows.y, rows.z);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  attention_prepare_kernel<K><<<grid, kGroup, 0, stream>>>(job);
  CHECK(cudaGetLastError());
  kernel<<<schedule.tiles, K::THREADS, bytes, stream>>>(
      tensor_map(boxes_of_queries(call, call.q, K::TILE_M), call.dtype), tensor_map(boxes_of_keys(call, call.k), call.dtype),
      tensor_map(boxes_of_keys(call, call.v), call.dtype),
      tensor_map(boxes_of_queries(call, job.dout, K::TILE_M), call.dtype), job, schedule);
  CHECK(cudaGetLastError());
  attention_finish_kernel<K><<<grid, kGroup, 0, stream>>>(job);
  CHECK(cudaGetLastError());
}

}  // namespace

void attention_backward(const AttentionBackward& job) {
  const OnDevice device(job.call.device);
  with_backward_kind(job, [&](auto kind) { launch<decltype(kind)>(job); });
}

}  // namespace undivided::cuda
