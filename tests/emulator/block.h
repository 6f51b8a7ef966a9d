// A block of GPU threads on a CPU: each thread is a fiber, and they take turns where one waits for another.
//
// The order of the fibers and the moment at which an asynchronous copy or product happens are drawn from a seed, early
// or as late as is allowed, and what is not there yet is NaN. A kernel that reads too early, or overwrites too early,
// gives a wrong result under one seed or another, and one in which everybody waits for somebody is an error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace emulator {

constexpr size_t kStack = 256 << 10;
constexpr size_t kSharedBytes = 227 << 10;

// A phase barrier in shared memory; its address there is its name.
struct PhaseBarrier {
  int64_t count = 0, missing = 0, bytes = 0;
  uint32_t phase = 0;
};

// A meeting of threads, over and over: of a named barrier, or of the lanes of a warp.
struct Meeting {
  std::vector<uint32_t> last;  // of each thread, the round after the last one in which it arrived
  int arrived = 0;
  uint32_t round = 0;
  bool any[2] = {false, false};
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  bool begun = false, done = false;
  const char* waits_for = "";
  int name = 0;  // of what it waits for
};

class Block {
 public:
  Block(int threads, uint32_t seed) : fibers(threads), warps(threads / 32), random(seed), late(seed != 0) {
    memory.reset(new unsigned char[kSharedBytes + 1024]);
    shared = memory.get() + (1024 - reinterpret_cast<uintptr_t>(memory.get()) % 1024);
    std::memset(shared, 0xFF, kSharedBytes);  // NaN
    lanes.resize(threads * 2);
  }

  // Runs `body` in every thread to its end.
  void run(const std::function<void()>& body);

  // Comes back when the condition holds.
  template <class Condition>
  void wait(Condition condition, const char* what, int name) {
    while (!condition()) {
      Fiber& fiber = fibers[current];
      fiber.waits_for = what;
      fiber.name = name;
      if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
    }
    ++progress;
  }

  void arrive(uint32_t address, int64_t bytes, bool thread) {
    PhaseBarrier& barrier = barriers.at(address);
    barrier.bytes += bytes;
    if (thread && --barrier.missing < 0) throw std::logic_error("more arrivals at a barrier than it counts");
    if (barrier.missing == 0 && barrier.bytes == 0) {
      barrier.missing = barrier.count;
      ++barrier.phase;
    }
    ++progress;
  }

  // Says in which round, for those who wait.
  uint32_t meet(Meeting& meeting, int threads, bool flag = false) {
    const uint32_t round = meeting.round;
    meeting.last.resize(fibers.size());
    if (meeting.last[current] == round + 1) throw std::logic_error("a thread arrived at a named barrier twice");
    meeting.last[current] = round + 1;
    bool& any = meeting.any[round % 2];
    any = meeting.arrived == 0 ? flag : any || flag;
    if (++meeting.arrived == threads) {
      meeting.arrived = 0;
      ++meeting.round;
    }
    ++progress;
    return round;
  }

  // What all lanes of the warp give, four numbers each; valid until the warp's next exchange but one.
  using Four = std::array<uint32_t, 4>;
  const Four* exchange(const Four& values) {
    Meeting& warp = warps[current / 32];
    Four* slots = lanes.data() + current / 32 * 64 + warp.round % 2 * 32;
    slots[current % 32] = values;
    const uint32_t round = meet(warp, 32);
    wait([&] { return warp.round != round; }, "its warp", 0);
    return slots;
  }
  uint32_t shuffle(uint32_t value, int lane) { return exchange({value})[lane][0]; }

  // An asynchronous act of the copy engine: at once, or some time later.
  void later(std::function<void()> act) {
    if (late && random() % 4 != 0) {
      pending.push_back(std::move(act));
    } else {
      act();
    }
  }

  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::map<int, Meeting> named;
  std::map<uint32_t, PhaseBarrier> barriers;
  std::map<int, std::vector<std::function<void()>>> additions;  // to global memory, of each thread
  unsigned char* shared;
  int current = 0, block = 0, grid = 1;
  int others[2] = {0, 0};  // the block's place along the other dimensions of the grid
  std::mt19937 random;
  bool late;

 private:
  void resume(int index);
  bool run_pending(bool all);

  std::unique_ptr<unsigned char[]> memory;
  std::vector<Four> lanes;
  std::deque<std::function<void()>> pending;
  std::function<void()> body;
  std::string error;
  jmp_buf scheduler;
  uint64_t progress = 0;
};

inline Block* block = nullptr;  // the one that runs

}  // namespace emulator
