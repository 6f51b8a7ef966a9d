// How the kernels share work among threads.
//
// The threads are PyTorch's own: the address of the GOMP_parallel that torch linked is handed over once
// (set_openmp), so a kernel and the torch op before it run on the same pool and never compete for cores. Where
// torch has no such pool, and in a child after fork (an OpenMP pool does not survive one), a pool of our own runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace undivided {

// A task, by its number in [0, n).
using TaskFunction = void (*)(void* context, int64_t task);

// Runs function(context, task) for every task in [0, n) on at most `threads` threads. Each thread begins with
// every threads-th task, the same ones in every call, in rising order, and then helps the others with theirs. A call
// from inside a task runs serially. Tasks must not throw.
void run_tasks(int64_t n, int threads, TaskFunction function, void* context);

// The address of GOMP_parallel, or null for our own pool. Ignored in a child after fork.
void set_openmp(void* gomp_parallel);

// "openmp" or "own": the threads that run_tasks would use now.
const char* thread_pool_kind();

// Scratch memory of the calling thread, 64-byte aligned, at least `bytes` long; contents are left over from earlier
// use. It is kept for the next call. `slot` (0 to 3) tells apart buffers that are needed at the same time.
void* scratch(size_t bytes, int slot);

// Bytes of the last-level cache, as far as anybody says.
int64_t cache_bytes();

// fn(task).
template <class Function>
inline void parallel_for(int64_t n, int threads, Function&& fn) {
  auto call = [](void* context, int64_t task) {
    (*static_cast<typename std::remove_reference<Function>::type*>(context))(task);
  };
  run_tasks(n, threads, call, const_cast<void*>(static_cast<const void*>(&fn)));
}

// The same where neighbours share caches: a thread's own tasks are a range here, as they are in most ops of torch, so that
// it meets the rows that it had in the op before. With two threads on Emerald Rapids the backward of a norm is 1.0 to 1.15
// times as fast as on every second band of rows, and right after its forward 1.0 to 1.3 times.
template <class Function>
inline void parallel_ranges(int64_t n, int threads, Function&& fn) {
  const int64_t ranges = threads < n ? threads : n;
  parallel_for(n, threads, [&](int64_t task) {
    const int64_t range = task % ranges, longer = n % ranges;  // the first ranges have one task more
    fn(range * (n / ranges) + (range < longer ? range : longer) + task / ranges);
  });
}

}  // namespace undivided
