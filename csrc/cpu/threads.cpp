#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif

namespace undivided {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Places are shares of the tasks: place p has p, p + places, p + 2 * places and so on.
constexpr int kMostPlaces = 64;

struct Place {
  alignas(64) std::atomic<int64_t> next;
};

thread_local bool inside_task = false;
thread_local int last_place = 1;

struct Team {
  Team(int64_t tasks, int threads, TaskFunction task_function, void* its_context)
      : n(tasks), places(threads < kMostPlaces ? threads : kMostPlaces), function(task_function), context(its_context) {
    for (int p = 0; p < places; ++p) place[p].next.store(p, std::memory_order_relaxed);
  }

  // Where the thread begins. The calling one has place 0; another one begins where it did last, if nobody does, so that
  // the same call again finds in each core's caches what the last one left there.
  int first_place() {
    if (caller == &last_place) return 0;
    int wanted = last_place < places ? last_place : 1;
    for (int tried = 1; tried < places; ++tried) {
      const uint64_t bit = uint64_t{1} << wanted;
      if ((taken.fetch_or(bit, std::memory_order_relaxed) & bit) == 0) break;
      wanted = wanted + 1 < places ? wanted + 1 : 1;
    }
    return last_place = wanted;
  }

  const int64_t n;
  const int places;
  const TaskFunction function;
  void* const context;
  const int* const caller = &last_place;
  std::atomic<uint64_t> taken{1};
  Place place[kMostPlaces];
};

// The tasks of the thread's own place, then what is left of the others'.
void work(Team& team) {
  const int first = team.first_place();
  const bool outer = inside_task;
  inside_task = true;
  for (int i = 0; i < team.places; ++i) {
    std::atomic<int64_t>& next = team.place[(first + i) % team.places].next;
    for (;;) {
      const int64_t task = next.fetch_add(team.places, std::memory_order_relaxed);
      if (task >= team.n) break;
      team.function(team.context, task);
    }
  }
  inside_task = outer;
}

void one_after_another(int64_t n, TaskFunction function, void* context) {
  const bool outer = inside_task;
  inside_task = true;
  for (int64_t task = 0; task < n; ++task) function(context, task);
  inside_task = outer;
}

void work_in_openmp(void* team) { work(*static_cast<Team*>(team)); }

// The pool for machines where torch has no GOMP_parallel, and for children after fork. It is never destroyed: its
// threads may still wait in it while the process exits.
class Pool {
 public:
  void run(Team& team, int threads) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return work(team);  // another caller has the threads
    grow(threads - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      team_ = &team;
      places_ = threads - 1;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(team);
    std::unique_lock<std::mutex> lock(mutex_);
    team_ = nullptr;  // who has not come by now need not come
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void grow(int workers) {
    for (; workers_ < workers; ++workers_) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // no more threads to be had: the ones there are do the work
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      // Calls come in quick succession: looking for the next one for a while is cheaper than sleeping.
      for (int spin = 0; spin < 2000 && generation_.load(std::memory_order_acquire) == seen; ++spin) {
        if (spin % 64 == 63) std::this_thread::yield();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (team_ == nullptr || places_ == 0) continue;
      --places_;
      ++active_;
      Team& team = *team_;
      lock.unlock();
      work(team);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  Team* team_ = nullptr;
  int places_ = 0;
  int active_ = 0;
  int workers_ = 0;
};

std::atomic<GompParallel> openmp{nullptr};
std::atomic<Pool*> own_pool{nullptr};
std::atomic<bool> forked{false};

Pool& pool() {
  Pool* found = own_pool.load(std::memory_order_acquire);
  if (found == nullptr) {
    Pool* fresh = new Pool;
    if (own_pool.compare_exchange_strong(found, fresh)) {
      found = fresh;
    } else {
      delete fresh;
    }
  }
  return *found;
}

// In the child only the thread that called fork exists: the parent's pools are gone though their state is there.
void in_child() {
  forked.store(true);
  openmp.store(nullptr);
  own_pool.store(nullptr);
}

#if defined(__unix__) || defined(__APPLE__)
const int at_fork = pthread_atfork(nullptr, nullptr, in_child);
#endif

struct Scratch {
  static constexpr int kSlots = 4;
  void* memory[kSlots] = {};
  size_t size[kSlots] = {};
  ~Scratch() {
    for (void* block : memory) std::free(block);
  }
};

thread_local Scratch scratch_of_thread;

// Bytes of the third-level cache, 0 where nobody says. The kernel is asked first: the C library counts the caches of a
// whole machine on some processors of AMD (320 MiB where a core reaches 32).
int64_t last_level_cache() {
  long size = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%ldK", &size) != 1) size = 0;
    std::fclose(file);
  }
  if (size > 0) return int64_t{1024} * size;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  return sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

void run_tasks(int64_t n, int threads, TaskFunction function, void* context) {
  if (n <= 0) return;
  if (threads > n) threads = static_cast<int>(n);
  if (threads <= 1 || inside_task) return one_after_another(n, function, context);
  Team team(n, threads, function, context);
  if (const GompParallel parallel = openmp.load(std::memory_order_relaxed)) {
    parallel(work_in_openmp, &team, static_cast<unsigned>(threads), 0);
  } else {
    pool().run(team, threads);
  }
}

void set_openmp(void* gomp_parallel) {
  if (!forked.load()) openmp.store(reinterpret_cast<GompParallel>(gomp_parallel));
}

const char* thread_pool_kind() { return openmp.load() != nullptr ? "openmp" : "own"; }

void* scratch(size_t bytes, int slot) {
  Scratch& mine = scratch_of_thread;
  if (mine.size[slot] < bytes) {
    std::free(mine.memory[slot]);
    mine.memory[slot] = nullptr;
    mine.size[slot] = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    mine.memory[slot] = std::aligned_alloc(64, rounded);
    if (mine.memory[slot] == nullptr) throw std::bad_alloc();
    mine.size[slot] = rounded;
  }
  return mine.memory[slot];
}

int64_t cache_bytes() {
  static const int64_t bytes = [] {
    const int64_t cache = last_level_cache();
    return cache > 0 ? cache : int64_t{32} << 20;
  }();
  return bytes;
}

}  // namespace undivided
