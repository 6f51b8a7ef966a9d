// The instructions of a Hopper GPU that CUDA C++ has no words for, one function each. Names are ours, and the comment
// gives the section of "Parallel Thread Execution ISA" that says what it does.
#pragma once

#ifndef __CUDACC__
#include "ptx_emulated.h"  // the same functions in C++, with which tests run the kernels on a CPU
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace undivided::cuda {

using TensorMap = CUtensorMap;
struct Bfloat16 {};
struct Float16 {};

#define KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define DEVICE __device__ __forceinline__
#define GRID_CONSTANT __grid_constant__

DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEVICE int block_index(int dim = 0) {
  return static_cast<int>(dim == 0 ? blockIdx.x : dim == 1 ? blockIdx.y : blockIdx.z);
}
DEVICE int grid_size() { return static_cast<int>(gridDim.x); }
DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }
DEVICE int atomic_next(int32_t* counter) { return atomicAdd(counter, 1); }
DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xFFFFFFFF, value, lanes); }
DEVICE bool shuffle_xor(bool value, int lanes) { return __shfl_xor_sync(0xFFFFFFFF, static_cast<int>(value), lanes); }

// Tells the compiler that a warp's threads have one value.
DEVICE int warp_uniform(int value) { return __shfl_sync(0xFFFFFFFF, value, 0); }

// The dynamic shared memory of the block.
DEVICE void* shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return bytes;
}
DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
DEVICE void require(bool condition) {
  if (!condition) __trap();
}

// Arithmetic. ex2.approx and lg2.approx: 2 ulp and 1 ulp or so; 0 of -inf; a NaN stays one.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float divide_fast(float x, float y) { return __fdividef(x, y); }
// rcp.approx: 1 ulp; 0 of what is so large that the result would be denormal.
DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// NaN where either is.
DEVICE float least(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
DEVICE float most(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
DEVICE uint32_t max_of_halves(uint32_t x, uint32_t y) { return __vmaxu2(x, y); }

// Two numbers, rounded to nearest even; the first one in the low half.
template <class Element>
DEVICE uint32_t packed(float low, float high);
template <>
DEVICE uint32_t packed<Bfloat16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
DEVICE uint32_t packed<Float16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// The two numbers of a pair.
template <class Element>
DEVICE void unpack(uint32_t both, float& low, float& high);
template <>
DEVICE void unpack<Bfloat16>(uint32_t both, float& low, float& high) {
  low = __uint_as_float(both << 16);
  high = __uint_as_float(both & 0xFFFF0000);
}
template <>
DEVICE void unpack<Float16>(uint32_t both, float& low, float& high) {
  const float2 pair = __half22float2(reinterpret_cast<__half2&>(both));
  low = pair.x;
  high = pair.y;
}

// The sum of the products of two pairs.
template <class Element>
DEVICE float product_of_halves(uint32_t x, uint32_t y) {
  float a[2], b[2];
  unpack<Element>(x, a[0], a[1]);
  unpack<Element>(y, b[0], b[1]);
  return a[0] * b[0] + a[1] * b[1];
}

template <class Element>
DEVICE float widened_half(uint16_t bits);
template <>
DEVICE float widened_half<Bfloat16>(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
template <>
DEVICE float widened_half<Float16>(uint16_t bits) {
  return __half2float(reinterpret_cast<__half&>(bits));
}
template <class Element>
DEVICE float sum_of_halves(uint32_t x) {
  return widened_half<Element>(static_cast<uint16_t>(x)) + widened_half<Element>(static_cast<uint16_t>(x >> 16));
}

// 16 bytes of global memory that are read, or written, once: they are the first to leave the caches ("ld.global.cs").
DEVICE void load_once(uint32_t (&words)[4], const void* from) {
  asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from));
}
DEVICE void store_once(void* to, const uint32_t (&words)[4]) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

// Barriers in memory ("mbarrier"). A phase ends when `count` threads have arrived and all expected bytes have; phases
// are told apart by their parity.
DEVICE void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// Makes the initialised barriers visible to the copy engine.
DEVICE void barriers_are_initialised() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
DEVICE void barrier_arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity is over: at once where it is the one before the first.
DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t over = 0;
  while (over == 0) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}\n"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// Named barriers ("barrier{.cta}"): `threads` of them, arriving ones included.
DEVICE void named_sync(int name, int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
DEVICE void named_arrive(int name, int threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
// A sync that tells everybody whether anybody's condition holds.
DEVICE bool named_any(int name, int threads, bool condition) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred mine, any;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred.aligned any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;\n"
      "}\n"
      : "=r"(any)
      : "r"(name), "r"(threads), "r"(static_cast<uint32_t>(condition))
      : "memory");
  return any != 0;
}

// The copy engine ("cp.async.bulk.tensor"). A box at coordinates (column, head, row, batch row) goes to shared memory,
// 0 where it lies outside of the tensor, and its bytes arrive at the barrier.
DEVICE void prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
DEVICE void load_box(void* to, const TensorMap* map, uint64_t* barrier, int column, int head, int row, int b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(row), "r"(b)
      : "memory");
}
// The box to the L2 cache only.
DEVICE void prefetch_box(const TensorMap* map, int column, int head, int row, int b) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(map), "r"(column), "r"(head),
               "r"(row), "r"(b)
               : "memory");
}
// Bytes next to each other, a multiple of 16, as are both addresses ("cp.async.bulk").
DEVICE void load_run(void* to, const void* from, uint64_t* barrier, uint32_t bytes) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// Adds numbers in shared memory to as many in global memory, where other blocks may do the same
// ("cp.reduce.async.bulk"). `runs_are_read`: this thread's additions no longer need what is in shared memory.
DEVICE void add_run(float* to, const float* from, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;\n" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}
DEVICE void runs_are_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// What this thread wrote to shared memory, the copy engine and the tensor cores see after the next barrier
// ("membar / fence", the async proxy).
DEVICE void publish_to_engines() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers of a warpgroup's threads ("setmaxnreg").
template <int COUNT>
DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

}  // namespace undivided::cuda

#endif
