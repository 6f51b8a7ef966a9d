#include "block.h"

#include <algorithm>
#include <numeric>

namespace emulator {
namespace {

// A fiber never returns from here: it goes back to the scheduler for good.
void enter(unsigned low, unsigned high) {
  auto* act = reinterpret_cast<std::function<void()>*>(static_cast<uintptr_t>(high) << 32 | low);
  (*act)();
}

}  // namespace

void Block::resume(int index) {
  Fiber& fiber = fibers[index];
  current = index;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  static std::function<void()> act;
  act = [this] {
    Fiber& own = fibers[current];
    try {
      body();
    } catch (const std::exception& reason) {
      error = reason.what();
    }
    own.done = true;
    ++progress;
    _longjmp(scheduler, 1);
  };
  const auto address = reinterpret_cast<uintptr_t>(&act);
  makecontext(&fiber.start, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
              static_cast<unsigned>(address >> 32));
  setcontext(&fiber.start);
}

bool Block::run_pending(bool all) {
  bool ran = false;
  for (size_t left = pending.size(); left > 0; --left) {
    auto act = std::move(pending.front());
    pending.pop_front();
    if (all || random() % 8 == 0) {
      act();
      ran = true;
    } else {
      pending.push_back(std::move(act));
    }
  }
  return ran;
}

void Block::run(const std::function<void()>& kernel) {
  body = kernel;
  std::vector<int> order(fibers.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<int> slow(warps.size(), 0);  // rounds for which a warp gets no turn
  while (true) {
    std::shuffle(order.begin(), order.end(), random);
    const uint64_t before = progress;
    bool alive = false, skipped = false;
    for (int& rounds : slow) {
      if (late && rounds == 0 && random() % 64 == 0) rounds = static_cast<int>(random() % 100);
      rounds -= rounds > 0;
    }
    for (int index : order) {
      if (fibers[index].done) continue;
      alive = true;
      if (slow[index / 32] > 0) {
        skipped = true;
        continue;
      }
      resume(index);
      if (!error.empty()) throw std::runtime_error("thread " + std::to_string(index) + ": " + error);
    }
    if (!alive) break;
    const bool stuck = progress == before && !skipped;
    if (run_pending(stuck) || !stuck) continue;
    std::string text = "nobody can go on:";
    for (size_t index = 0; index < fibers.size(); index += 32) {
      const Fiber& fiber = fibers[index];
      if (fiber.done) continue;
      text += " thread " + std::to_string(index) + " waits for " + fiber.waits_for + " " + std::to_string(fiber.name) + ";";
    }
    throw std::runtime_error(text);
  }
  if (!pending.empty()) throw std::runtime_error("the block ended before all copies had arrived");
  for (const auto& [address, barrier] : barriers) {
    (void)address;
    if (barrier.bytes != 0) throw std::runtime_error("the block ended with bytes missing at a barrier");
  }
  for (const auto& [name, meeting] : named) {
    if (meeting.arrived != 0) {
      throw std::runtime_error("the block ended with threads at named barrier " + std::to_string(name));
    }
  }
}

}  // namespace emulator
