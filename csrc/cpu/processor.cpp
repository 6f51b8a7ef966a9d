#include "processor.h"

#include <cstring>

#include "dot_speed.h"
#include "variant.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace undivided {

bool made_by_intel() {
#if defined(__x86_64__) || defined(__i386__)
  unsigned a = 0, name[3] = {};  // in the order ebx, edx, ecx
  return __get_cpuid(0, &a, &name[0], &name[2], &name[1]) != 0 && std::memcmp(name, "GenuineIntel", sizeof name) == 0;
#else
  return false;
#endif
}

bool is_wide_and_not_intels() { return !made_by_intel() && multiplies_whole_vectors(); }

bool bfloat16_products_are_fast() {
#if defined(__x86_64__) || defined(__i386__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1U) != 0;  // AMX-BF16
  return tiles || dots_are_faster();
#else
  return true;
#endif
}

}  // namespace undivided
