// Starts the feed-forward network's forward on a Hopper GPU.
#include <algorithm>

#include "feed_forward_launch.cuh"
#include "runtime.h"
#include "tensor_map.h"

namespace undivided::cuda {
namespace {

template <class K>
void launch(const FeedForwardForward& job) {
  constexpr int bytes = sizeof(ProductShared);
  static_assert(bytes <= 227 * 1024, "more shared memory than a block can have");
  const FeedForwardSizes& sizes = job.sizes;
  const auto kernel = feed_forward_forward_kernel<K>;
  const ProductTiles tiles = product_tiles(sizes, K::COLUMNS);
  int multiprocessors = 0;
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, sizes.device));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<std::min(multiprocessors, tiles.count), kProductThreads, bytes, static_cast<cudaStream_t>(sizes.stream)>>>(
      tensor_map(boxes_of_left(job.x, sizes), sizes.dtype), tensor_map(boxes_of_maps_in(job.w_in, sizes), sizes.dtype),
      tensor_map(boxes_of_maps_in(K::PAIR ? job.w_gate : job.w_in, sizes), sizes.dtype), job, tiles);
  CHECK(cudaGetLastError());
}

}  // namespace

void feed_forward_forward(const FeedForwardForward& job) {
  const OnDevice device(job.sizes.device);
  with_feed_forward_kind<FeedForwardKind>(job.sizes, job.w_gate.data != nullptr,
                                          [&](auto kind) { launch<decltype(kind)>(job); });
}

}  // namespace undivided::cuda
