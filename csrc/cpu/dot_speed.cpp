#include "dot_speed.h"

#include "matmul_tile.h"

namespace undivided::UNDIVIDED_VARIANT {

#if defined(__AVX512BF16__)
namespace {

constexpr int kChains = 12;  // sums that do not wait for one another: more than latency times rate
constexpr int kSteps = 64;
constexpr int kTries = 8;  // the fastest counts: others were interrupted, or came before the clock was up

template <class Word>
uint64_t cycles(Word left, Vec right) {
  Vec sum[kChains] = {};
  const uint64_t start = __rdtsc();
  for (int step = 0; step < kSteps; ++step) {
    unrolled<kChains>([&](auto i) UNDIVIDED_INLINE_LAMBDA {
      sum[i.value] = multiply_add(left, right, sum[i.value]);
      asm volatile("" : "+v"(sum[i.value]));  // every one is made
    });
  }
  return __rdtsc() - start;
}

}  // namespace

bool measured_dots_are_faster() {
  uint64_t pairs = ~uint64_t{0}, floats = pairs;
  for (int count = 0; count < kTries; ++count) {
    const uint64_t first = cycles(Pair{0}, zeros()), second = cycles(0.0F, zeros());
    pairs = first < pairs ? first : pairs;
    floats = second < floats ? second : floats;
  }
  return pairs < 2 * floats;  // for twice as many operations
}
#else
bool measured_dots_are_faster() { return false; }
#endif

}  // namespace undivided::UNDIVIDED_VARIANT
