// What csrc/cuda/ptx.cuh and wgmma.cuh have, in C++, as the "Parallel Thread Execution ISA" defines it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"

#define DEVICE inline
#define KERNEL(threads) void
#define GRID_CONSTANT

namespace undivided::cuda {

using emulator::block;

struct Bfloat16 {};
struct Float16 {};

// Sizes in elements, strides in bytes, of (column, head, row, batch row).
struct TensorMap {
  const unsigned char* data;
  int64_t size[4], stride[4];
  int64_t box[4];
};

DEVICE int thread_index() { return block->current; }
DEVICE int block_index(int dim = 0) { return dim == 0 ? block->block : block->others[dim - 1]; }
DEVICE int grid_size() { return block->grid; }
DEVICE int warp_uniform(int value) { return static_cast<int>(block->shuffle(static_cast<uint32_t>(value), 0)); }
DEVICE void warp_sync() { block->shuffle(0, 0); }
DEVICE int atomic_next(int32_t* counter) { return (*counter)++; }
DEVICE void* shared_memory() { return block->shared; }
// Other bits than those of an address, so that one cannot be taken for the other.
DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - block->shared) + 1024;
}
DEVICE unsigned char* shared_pointer(uint32_t address) { return block->shared + address - 1024; }
DEVICE void require(bool condition) {
  if (!condition) throw std::logic_error("a requirement of the kernel does not hold");
}

DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
DEVICE float shuffle_xor(float value, int lanes) {
  return float_of(block->shuffle(bits_of(value), thread_index() % 32 ^ lanes));
}
DEVICE bool shuffle_xor(bool value, int lanes) { return block->shuffle(value, thread_index() % 32 ^ lanes) != 0; }

DEVICE float exp2_fast(float x) { return std::exp2(x); }
DEVICE float log2_fast(float x) { return std::log2(x); }
DEVICE float divide_fast(float x, float y) { return x / y; }
DEVICE float reciprocal_fast(float x) { return std::fabs(x) >= 0x1p126F ? std::copysign(0.0F, x) : 1.0F / x; }
DEVICE float least(float x, float y) { return std::isnan(x) || std::isnan(y) ? NAN : std::min(x, y); }
DEVICE float most(float x, float y) { return std::isnan(x) || std::isnan(y) ? NAN : std::max(x, y); }
DEVICE uint32_t max_of_halves(uint32_t x, uint32_t y) {
  return std::max(x >> 16, y >> 16) << 16 | std::max(x & 0xFFFF, y & 0xFFFF);
}

template <class Element>
uint16_t rounded(float value);
template <>
inline uint16_t rounded<Bfloat16>(float value) {
  if (std::isnan(value)) return 0x7FFF;
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
template <>
inline uint16_t rounded<Float16>(float value) {
  const auto half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
template <class Element>
float widened(uint16_t bits);
template <>
inline float widened<Bfloat16>(uint16_t bits) {
  return float_of(static_cast<uint32_t>(bits) << 16);
}
template <>
inline float widened<Float16>(uint16_t bits) {
  static const std::vector<float> every = [] {  // a conversion each time would be most of the work
    std::vector<float> values(1 << 16);
    for (uint32_t n = 0; n < values.size(); ++n) {
      const auto low = static_cast<uint16_t>(n);
      _Float16 half;
      std::memcpy(&half, &low, 2);
      values[n] = static_cast<float>(half);
    }
    return values;
  }();
  return every[bits];
}
template <class Element>
uint32_t packed(float low, float high) {
  return static_cast<uint32_t>(rounded<Element>(high)) << 16 | rounded<Element>(low);
}

template <class Element>
float widened_half(uint16_t bits) {
  return widened<Element>(bits);
}
template <class Element>
float sum_of_halves(uint32_t x) {
  return widened<Element>(static_cast<uint16_t>(x)) + widened<Element>(static_cast<uint16_t>(x >> 16));
}
template <class Element>
void unpack(uint32_t both, float& low, float& high) {
  low = widened<Element>(static_cast<uint16_t>(both));
  high = widened<Element>(static_cast<uint16_t>(both >> 16));
}
template <class Element>
float product_of_halves(uint32_t x, uint32_t y) {
  return widened<Element>(static_cast<uint16_t>(x)) * widened<Element>(static_cast<uint16_t>(y)) +
         widened<Element>(static_cast<uint16_t>(x >> 16)) * widened<Element>(static_cast<uint16_t>(y >> 16));
}
DEVICE void load_once(uint32_t (&words)[4], const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::logic_error("16 bytes at an odd address");
  std::memcpy(words, from, 16);
}
DEVICE void store_once(void* to, const uint32_t (&words)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) throw std::logic_error("16 bytes at an odd address");
  std::memcpy(to, words, 16);
}

DEVICE void barrier_init(uint64_t* barrier, uint32_t count) {
  block->barriers[shared_address(barrier)] = {count, count, 0, 0};
}
DEVICE void barriers_are_initialised() {}
DEVICE void barrier_arrive(uint64_t* barrier) { block->arrive(shared_address(barrier), 0, true); }
DEVICE void barrier_arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  block->arrive(shared_address(barrier), bytes, true);
}
DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const auto& state = block->barriers.at(shared_address(barrier));
  block->wait([&] { return state.phase % 2 != parity; }, "the barrier at", static_cast<int>(shared_address(barrier)));
}

DEVICE bool named_any(int name, int threads, bool condition) {
  emulator::Meeting& meeting = block->named[name];
  const uint32_t round = block->meet(meeting, threads, condition);
  block->wait([&] { return meeting.round != round; }, "named barrier", name);
  return meeting.any[round % 2];
}
DEVICE void named_sync(int name, int threads) { named_any(name, threads, false); }
DEVICE void named_arrive(int name, int threads) { block->meet(block->named[name], threads); }
DEVICE void block_sync() { named_sync(0, static_cast<int>(block->fibers.size())); }

// The copy engine's 128-byte swizzle: bits 4 to 6 of an address in shared memory by bits 7 to 9.
DEVICE uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

DEVICE void prefetch(const TensorMap*) {}
DEVICE void prefetch_box(const TensorMap*, int, int, int, int) {}
DEVICE void load_box(void* to, const TensorMap* map, uint64_t* barrier, int column, int head, int row, int b) {
  const uint32_t start = shared_address(to), from = shared_address(barrier);
  const uint32_t bytes = static_cast<uint32_t>(map->box[0] * map->box[2] * 2);
  if (start % 1024 != 0) throw std::logic_error("a box must start at a multiple of 1024");
  std::memset(to, 0xFF, bytes);
  block->later([=] {
    for (int64_t r = 0; r < map->box[2]; ++r) {
      for (int64_t c = 0; c < map->box[0]; ++c) {
        const int64_t at[4] = {column + c, head, row + r, b};
        bool inside = true;
        int64_t offset = 0;
        for (int dim = 0; dim < 4; ++dim) {
          inside = inside && at[dim] >= 0 && at[dim] < map->size[dim];
          offset += at[dim] * map->stride[dim];
        }
        uint16_t value = 0;
        if (inside) std::memcpy(&value, map->data + offset, 2);
        std::memcpy(shared_pointer(swizzle_128(start + static_cast<uint32_t>(r * 128 + c * 2))), &value, 2);
      }
    }
    block->arrive(from, -static_cast<int64_t>(bytes), false);
  });
}
DEVICE void load_run(void* to, const void* from, uint64_t* barrier, uint32_t bytes) {
  const uint32_t start = shared_address(to), at = shared_address(barrier);
  if (start % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) {
    throw std::logic_error("a run of bytes that is no multiple of 16");
  }
  std::memset(to, 0xFF, bytes);
  block->later([=] {
    std::memcpy(shared_pointer(start), from, bytes);
    block->arrive(at, -static_cast<int64_t>(bytes), false);
  });
}
// Late, an addition is done when its thread waits for it, or at the end of the block.
DEVICE void runs_are_read() {
  auto& acts = block->additions[block->current];
  for (auto& act : acts) act();
  acts.clear();
}
DEVICE void add_run(float* to, const float* from, uint32_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || shared_address(from) % 16 != 0 || bytes % 16 != 0) {
    throw std::logic_error("a run of bytes that is no multiple of 16");
  }
  block->additions[block->current].push_back([=] {
    for (uint32_t n = 0; n < bytes / 4; ++n) to[n] += from[n];
  });
  if (!block->late) runs_are_read();
}
DEVICE void publish_to_engines() {}
template <int COUNT>
void release_registers() {}
template <int COUNT>
void claim_registers() {}

}  // namespace undivided::cuda

#include "products_emulated.h"
