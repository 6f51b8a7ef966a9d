// Starts the attention forward on a Hopper GPU.
#include <algorithm>

#include "attention_launch.cuh"
#include "runtime.h"
#include "tensor_map.h"

namespace undivided::cuda {
namespace {

template <class K>
void launch(const AttentionForward& job) {
  constexpr int bytes = sizeof(Shared<K>);
  static_assert(bytes <= 227 * 1024, "more shared memory than a block can have");
  const auto stream = static_cast<cudaStream_t>(job.stream);
  const auto kernel = attention_forward_kernel<K>;
  const Schedule schedule = schedule_of(job, K::TILE_M);
  int multiprocessors = 0;
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, job.device));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  CHECK(cudaMemsetAsync(job.counter, 0, sizeof(*job.counter), stream));
  kernel<<<std::min(multiprocessors, schedule.tiles), K::THREADS, bytes, stream>>>(
      tensor_map(boxes_of_queries(job, job.q, K::TILE_M), job.dtype), tensor_map(boxes_of_keys(job, job.k), job.dtype),
      tensor_map(boxes_of_keys(job, job.v), job.dtype), job, schedule);
  CHECK(cudaGetLastError());
}

}  // namespace

void attention_forward(const AttentionForward& job) {
  const OnDevice device(job.device);
  with_kind(job, [&](auto kind) { launch<decltype(kind)>(job); });
}

}  // namespace undivided::cuda
