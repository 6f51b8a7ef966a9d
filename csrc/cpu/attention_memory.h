// Scratch memory of a task, cut into arrays that start at multiples of 64 bytes.
#pragma once

#include "attention_blocks.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// With base 0 it only counts: arrange everything twice, first to learn the size.
class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  void take(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
  }
  size_t used() const { return used_; }

 private:
  uintptr_t base_;
  size_t used_ = 0;
};

// Calls task.arrange(arena) with memory of this thread.
template <class Task>
inline void arrange(Task& task) {
  Arena counting(nullptr);
  task.arrange(counting);
  Arena arena(scratch(counting.used() + 64, 0));
  task.arrange(arena);
}

}  // namespace undivided::UNDIVIDED_VARIANT
