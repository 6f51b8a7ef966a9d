// Starts the feed-forward network's backward on a Hopper GPU.
#include <algorithm>

#include "feed_forward_launch.cuh"
#include "runtime.h"
#include "tensor_map.h"

namespace undivided::cuda {
namespace {

template <class K>
void launch(const FeedForwardBackward& job) {
  constexpr int bytes = sizeof(ProductShared);
  static_assert(bytes <= 227 * 1024, "more shared memory than a block can have");
  const FeedForwardSizes& sizes = job.sizes;
  const auto kernel = feed_forward_backward_kernel<K>;
  const ProductTiles tiles = product_tiles(sizes, K::COLUMNS);
  int multiprocessors = 0;
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, sizes.device));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<std::min(multiprocessors, tiles.count), kProductThreads, bytes, static_cast<cudaStream_t>(sizes.stream)>>>(
      tensor_map(boxes_of_left(job.dout, sizes), sizes.dtype),
      tensor_map(boxes_of_map_out(job.w_out, sizes), sizes.dtype),
      tensor_map(boxes_of_hidden(job.h, sizes), sizes.dtype),
      tensor_map(boxes_of_hidden(K::GATED ? job.g : job.h, sizes), sizes.dtype), job, tiles);
  CHECK(cudaGetLastError());
}

}  // namespace

void feed_forward_backward(const FeedForwardBackward& job) {
  const OnDevice device(job.sizes.device);
  with_feed_forward_kind<FeedForwardBackwardKind>(job.sizes, job.g != nullptr,
                                                  [&](auto kind) { launch<decltype(kind)>(job); });
}

}  // namespace undivided::cuda
