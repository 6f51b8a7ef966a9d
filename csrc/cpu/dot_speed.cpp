#include "dot_speed.h"

#include "matmul_tile.h"

namespace undivided::UNDIVIDED_VARIANT {

#if defined(__AVX512F__)
namespace {

constexpr int kChains = 12;  // sums that do not wait for one another: more than latency times rate
constexpr int kSteps = 64;
constexpr int kTries = 8;  // the fastest counts: others were interrupted, or came before the clock was up

template <class Sum, class Step>
uint64_t cycles(Step step) {
  Sum sum[kChains] = {};
  const uint64_t start = __rdtsc();
  for (int count = 0; count < kSteps; ++count) {
    unrolled<kChains>([&](auto i) UNDIVIDED_INLINE_LAMBDA {
      sum[i.value] = step(sum[i.value]);
      asm volatile("" : "+v"(sum[i.value]));  // every one is made
    });
  }
  return __rdtsc() - start;
}

// Whether as many steps of the first kind take less than twice the time of the second.
template <class First, class Second, class FirstStep, class SecondStep>
bool keeps_up(FirstStep first, SecondStep second) {
  uint64_t fewest[] = {~uint64_t{0}, ~uint64_t{0}};
  for (int count = 0; count < kTries; ++count) {
    const uint64_t took[] = {cycles<First>(first), cycles<Second>(second)};
    for (int i = 0; i < 2; ++i) fewest[i] = took[i] < fewest[i] ? took[i] : fewest[i];
  }
  return fewest[0] < fewest[1] * 3 / 2;
}

template <class Word>
auto products(Word left) {
  const Vec right = zeros();
  return [left, right](Vec sum) UNDIVIDED_INLINE_LAMBDA { return multiply_add(left, right, sum); };
}

}  // namespace

bool measured_whole_vectors() {
  const __m256 half = _mm256_setzero_ps();
  return keeps_up<Vec, __m256>(products(0.0F), [half](__m256 sum) UNDIVIDED_INLINE_LAMBDA {
    return _mm256_fmadd_ps(half, half, sum);
  });
}
#else
bool measured_whole_vectors() { return false; }
#endif

#if defined(__AVX512BF16__)
bool measured_dots_are_faster() { return keeps_up<Vec, Vec>(products(Pair{0}), products(0.0F)); }
#else
bool measured_dots_are_faster() { return false; }
#endif

}  // namespace undivided::UNDIVIDED_VARIANT
