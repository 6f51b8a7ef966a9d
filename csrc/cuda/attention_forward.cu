// Starts the attention forward on a Hopper GPU.
#include <algorithm>

#include "attention_launch.cuh"
#include "runtime.h"

namespace undivided::cuda {
namespace {

TensorMap tensor_map(const Boxes& boxes, Dtype dtype) {
  const auto type =
      dtype == Dtype::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const uint32_t steps[4] = {1, 1, 1, 1};
  TensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, type, 4, boxes.data, boxes.size, boxes.stride + 1, boxes.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw std::runtime_error(refused_map(boxes.size, boxes.stride, result));
  return map;
}

template <class K>
void launch(const AttentionForward& job) {
  constexpr int bytes = sizeof(Shared<K>);
  static_assert(bytes <= 227 * 1024, "more shared memory than a block can have");
  const auto stream = static_cast<cudaStream_t>(job.stream);
  const auto kernel = attention_forward_kernel<K>;
  const Schedule schedule = schedule_of(job);
  int multiprocessors = 0;
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, job.device));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  CHECK(cudaMemsetAsync(job.counter, 0, sizeof(*job.counter), stream));
  kernel<<<std::min(multiprocessors, schedule.tiles), kThreads, bytes, stream>>>(
      tensor_map(boxes_of_q(job), job.dtype), tensor_map(boxes_of_k(job), job.dtype),
      tensor_map(boxes_of_v(job), job.dtype), job, schedule);
  CHECK(cudaGetLastError());
}

}  // namespace

void attention_forward(const AttentionForward& job) {
  const OnDevice device(job.device);
  with_kind(job, [&](auto kind) { launch<decltype(kind)>(job); });
}

}  // namespace undivided::cuda
