// Which instruction sets this processor has, and the choice among the compiled variants.
#include "variant.h"

#include "dot_speed.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define UNDIVIDED_X86 1
#else
#define UNDIVIDED_X86 0
#endif

namespace undivided {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "avx512_bf16_dots"};
constexpr bool kCompiled[] = {true, UNDIVIDED_HAS_AVX2 != 0, UNDIVIDED_HAS_AVX512 != 0, UNDIVIDED_HAS_AVX512_BF16 != 0,
                              UNDIVIDED_HAS_AVX512_BF16 != 0};
constexpr int kCount = 5;

// The best variant that the processor and the operating system support, compiled or not.
int processor_level() {
#if UNDIVIDED_X86
  unsigned a = 0, b = 0, c = 0, d = 0;
  auto bit = [](unsigned value, int index) { return (value >> index & 1U) != 0; };
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool fma = bit(c, 12), saves_state = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!saves_state || !avx || !fma || !f16c) return 0;
  unsigned state = 0, high = 0;
  __asm__("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
  if ((state & 0x06U) != 0x06U) return 0;  // the system does not save the AVX registers
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return 0;
  const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  if (!avx512 || (state & 0xE6U) != 0xE6U) return 1;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5)) return static_cast<int>(Variant::avx512_bf16_dots);
  return 2;
#else
  return 0;
#endif
}

int best_variant() {
  int level = processor_level();
  while (level > 0 && !kCompiled[level]) --level;
  if (level == static_cast<int>(Variant::avx512_bf16_dots) && !dots_are_faster()) --level;
  return level;
}

std::atomic<int>& chosen() {
  static std::atomic<int> value{best_variant()};
  return value;
}

}  // namespace

Variant current_variant() { return static_cast<Variant>(chosen().load(std::memory_order_relaxed)); }

const char* variant_name(Variant variant) { return kNames[static_cast<int>(variant)]; }

bool dots_are_faster() {
#if UNDIVIDED_HAS_AVX512_BF16
  static const bool faster =
      processor_level() == static_cast<int>(Variant::avx512_bf16_dots) && avx512_bf16::measured_dots_are_faster();
  return faster;
#else
  return false;
#endif
}

bool multiplies_whole_vectors() {
#if UNDIVIDED_HAS_AVX512
  static const bool whole =
      processor_level() >= static_cast<int>(Variant::avx512) && avx512::measured_whole_vectors();
  return whole;
#else
  return false;
#endif
}

bool variant_available(Variant variant) {
  static const int level = processor_level();
  return kCompiled[static_cast<int>(variant)] && static_cast<int>(variant) <= level;
}

bool set_variant(const char* name) {
  for (int index = 0; index < kCount; ++index) {
    if (std::strcmp(name, kNames[index]) == 0 && variant_available(static_cast<Variant>(index))) {
      chosen().store(index);
      return true;
    }
  }
  return false;
}

}  // namespace undivided
