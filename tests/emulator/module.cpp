// The module `undivided_emulated`: the kernels of csrc/cuda and their bindings, on the emulated block of a CPU.
#include "bindings/attention_cuda.cpp"
#include "bindings/feed_forward_cuda.cpp"
#include "block.h"
#include "cuda/attention_launch.cuh"
#include "cuda/feed_forward_launch.cuh"

#include <pybind11/stl.h>

#include <tuple>

namespace {

const undivided::Binding* first_binding = nullptr;
uint32_t seed = 0;
int multiprocessors = 3;  // few, so that a block takes several tiles

}  // namespace

namespace undivided {

Binding::Binding(Define define) : define(define), next(first_binding) { first_binding = this; }

namespace cuda {

TensorMap tensor_map(const Boxes& boxes) {
  TensorMap map{static_cast<const unsigned char*>(boxes.data), {}, {}, {}};
  for (int dim = 0; dim < 4; ++dim) {
    map.size[dim] = static_cast<int64_t>(boxes.size[dim]);
    map.stride[dim] = static_cast<int64_t>(boxes.stride[dim]);
    map.box[dim] = boxes.box[dim];
    if (map.size[dim] < 1 || (dim > 0 && map.stride[dim] % 16 != 0)) throw std::runtime_error("a map that is refused");
  }
  if (reinterpret_cast<uintptr_t>(boxes.data) % 16 != 0) throw std::runtime_error("a map at an odd address");
  return map;
}

// Runs a block of the grid.
template <class Body>
void run_block(int threads, int index, int grid, const int (&others)[2], Body body) {
  emulator::Block block(threads, seed == 0 ? 0 : seed + static_cast<uint32_t>(index));
  block.block = index;
  block.grid = grid;
  block.others[0] = others[0];
  block.others[1] = others[1];
  emulator::block = &block;
  products.assign(threads, {});
  block.run(body);
  emulator::block = nullptr;
}

void attention_forward(const AttentionForward& job) {
  with_kind(job, [&](auto kind) {
    using K = decltype(kind);
    static_assert(sizeof(Shared<K>) <= emulator::kSharedBytes);
    const Schedule schedule = schedule_of(job, K::TILE_M);
    const TensorMap q = tensor_map(boxes_of_queries(job, job.q, K::TILE_M)), k = tensor_map(boxes_of_keys(job, job.k)),
                    v = tensor_map(boxes_of_keys(job, job.v));
    *job.counter = 0;
    const int grid = std::min(multiprocessors, schedule.tiles);
    for (int index = 0; index < grid; ++index) {
      run_block(K::THREADS, index, grid, {0, 0}, [&] { attention_forward_kernel<K>(q, k, v, job, schedule); });
    }
  });
}

void attention_backward(const AttentionBackward& job) {
  const AttentionForward& call = job.call;
  with_backward_kind(job, [&](auto kind) {
    using K = decltype(kind);
    static_assert(sizeof(BackwardShared<K>) <= emulator::kSharedBytes);
    const Schedule schedule = backward_schedule_of(call);
    const TensorMap q = tensor_map(boxes_of_queries(call, call.q, K::TILE_M)),
                    k = tensor_map(boxes_of_keys(call, call.k)), v = tensor_map(boxes_of_keys(call, call.v)),
                    dout = tensor_map(boxes_of_queries(call, job.dout, K::TILE_M));
    const Grid grid = grid_of_rows(call);
    auto every_row = [&](auto body) {
      for (int z = 0; z < static_cast<int>(grid.z); ++z) {
        for (int y = 0; y < static_cast<int>(grid.y); ++y) {
          for (int x = 0; x < static_cast<int>(grid.x); ++x) {
            run_block(kGroup, x, static_cast<int>(grid.x), {y, z}, body);
          }
        }
      }
    };
    every_row([&] { attention_prepare_kernel<K>(job); });
    for (int index = 0; index < schedule.tiles; ++index) {
      run_block(K::THREADS, index, schedule.tiles, {0, 0},
                [&] { attention_backward_kernel<K>(q, k, v, dout, job, schedule); });
    }
    every_row([&] { attention_finish_kernel<K>(job); });
  });
}

// Runs a kernel of blocks that stay.
template <class Body>
void run_product(const ProductTiles& tiles, Body body) {
  static_assert(sizeof(ProductShared) <= emulator::kSharedBytes);
  const int grid = std::min(multiprocessors, tiles.count);
  for (int index = 0; index < grid; ++index) run_block(kProductThreads, index, grid, {0, 0}, body);
}

void feed_forward_forward(const FeedForwardForward& job) {
  const FeedForwardSizes& sizes = job.sizes;
  with_feed_forward_kind<FeedForwardKind>(sizes, job.w_gate.data != nullptr, [&](auto kind) {
    using K = decltype(kind);
    const ProductTiles tiles = product_tiles(sizes, K::COLUMNS);
    const TensorMap x = tensor_map(boxes_of_left(job.x, sizes)), w_in = tensor_map(boxes_of_maps_in(job.w_in, sizes)),
                    w_gate = tensor_map(boxes_of_maps_in(K::PAIR ? job.w_gate : job.w_in, sizes));
    run_product(tiles, [&] { feed_forward_forward_kernel<K>(x, w_in, w_gate, job, tiles); });
  });
}

void feed_forward_backward(const FeedForwardBackward& job) {
  const FeedForwardSizes& sizes = job.sizes;
  with_feed_forward_kind<FeedForwardBackwardKind>(sizes, job.g != nullptr, [&](auto kind) {
    using K = decltype(kind);
    const ProductTiles tiles = product_tiles(sizes, K::COLUMNS);
    const TensorMap dout = tensor_map(boxes_of_left(job.dout, sizes)),
                    w_out = tensor_map(boxes_of_map_out(job.w_out, sizes)),
                    h = tensor_map(boxes_of_hidden(job.h, sizes)),
                    g = tensor_map(boxes_of_hidden(K::GATED ? job.g : job.h, sizes));
    run_product(tiles, [&] { feed_forward_backward_kernel<K>(dout, w_out, h, g, job, tiles); });
  });
}

// (block, batch row, head) of every tile, in the order of the list.
std::vector<std::tuple<int, int, int>> tiles(int batch, int nheads, int group, int seqlen_q, int64_t head_bytes,
                                             bool last_first) {
  const Schedule schedule = make_schedule(batch, nheads, group, seqlen_q, 128, head_bytes, last_first);
  std::vector<std::tuple<int, int, int>> list;
  for (int index = 0; index < schedule.tiles; ++index) {
    const Tile tile = tile_of(schedule, index);
    list.emplace_back(tile.block, tile.b, tile.h);
  }
  return list;
}

// (row, column) of every tile of a product, in order.
std::vector<std::tuple<int, int>> order_of_products(int down, int across) {
  std::vector<std::tuple<int, int>> list;
  for (int index = 0; index < down * across; ++index) {
    const ProductTile tile = product_tile({down, across, down * across}, index);
    list.emplace_back(tile.row, tile.column);
  }
  return list;
}

// The key tiles that the queries from m on visit, and those of them that need no mask: (begin, end, begin, end). A bound
// below 0 is none.
std::tuple<int, int, int, int> visited(int lenq, int lenk, int64_t shift, int64_t left, int64_t right, int m) {
  const Sequence at{0, 0, lenq, lenk, shift};
  const Tiles found = key_tiles<128, kTileN>(at, Window{left >= 0, right >= 0, left, right}, m);
  return {found.visited.begin, found.visited.end, found.whole.begin, found.whole.end};
}

// The same of the query tiles, of 64, that visit the keys from n on.
std::tuple<int, int, int, int> visiting(int lenq, int lenk, int64_t shift, int64_t left, int64_t right, int n) {
  const Sequence at{0, 0, lenq, lenk, shift};
  const Tiles found = query_tiles<64, kTileN>(at, Window{left >= 0, right >= 0, left, right}, n);
  return {found.visited.begin, found.visited.end, found.whole.begin, found.whole.end};
}

}  // namespace cuda
}  // namespace undivided

PYBIND11_MODULE(undivided_emulated, module) {
  module.def("set_seed", [](uint32_t value) { seed = value; }, "0: everything happens at once; else late, by this seed.");
  module.def("set_multiprocessors", [](int value) { multiprocessors = value; });
  module.def("tiles", &undivided::cuda::tiles);
  module.def("product_tiles", &undivided::cuda::order_of_products);
  module.def("visited", &undivided::cuda::visited);
  module.def("visiting", &undivided::cuda::visiting);
  for (const auto* each = first_binding; each != nullptr; each = each->next) each->define(module);
}
