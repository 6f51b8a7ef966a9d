// The tensor cores of a Hopper GPU ("wgmma"): a warpgroup multiplies 64 rows, asynchronously.
//
// Registers that a product uses must not be touched from its start to the wait for it. The compiler does not see that:
// `keep` holds their values in place, before the start and after the wait. (ptxas before 13.3 may give the registers of
// an operand to something else before they have been read.)
#pragma once

#include "ptx.cuh"

#ifdef __CUDACC__

namespace undivided::cuda {

// Orders what this thread did to registers and shared memory before the products that follow.
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Those started since the last time are a group.
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most PENDING groups are unfinished.
template <int PENDING>
DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int COUNT>
DEVICE void keep(float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int COUNT>
DEVICE void keep(uint32_t (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

#define UNDIVIDED_4(a, i) "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3])
#define UNDIVIDED_16(a, i) UNDIVIDED_4(a, i), UNDIVIDED_4(a, i + 4), UNDIVIDED_4(a, i + 8), UNDIVIDED_4(a, i + 12)
#define UNDIVIDED_32(a) UNDIVIDED_16(a, 0), UNDIVIDED_16(a, 16)
#define UNDIVIDED_64(a) UNDIVIDED_32(a), UNDIVIDED_16(a, 32), UNDIVIDED_16(a, 48)
#define UNDIVIDED_NAMES_32                                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                             \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define UNDIVIDED_NAMES_64                                                                                             \
  UNDIVIDED_NAMES_32                                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// sums [64, 2 * COUNT] (+)= a [64, 16] b [2 * COUNT, 16]^T, both by descriptors of `summed_along_rows`. `add`: keep what
// is there.
template <class Element>
DEVICE void multiply_rows(float (&sums)[32], uint64_t a, uint64_t b, bool add);
template <class Element>
DEVICE void multiply_rows(float (&sums)[64], uint64_t a, uint64_t b, bool add);

// sums [64, 128] (+)= a [64, 16] b [16, 128]: a by a descriptor of `summed_along_rows`, b by `summed_along_columns`.
template <class Element>
DEVICE void multiply_plain(float (&sums)[64], uint64_t a, uint64_t b, bool add);

// sums [64, 64] (+)= a [16, 64]^T b [16, 64], both by descriptors of `summed_along_columns`.
template <class Element>
DEVICE void multiply_turned(float (&sums)[32], uint64_t a, uint64_t b, bool add);

// sums [64, 2 * COUNT] += a [64, 16] b [16, 2 * COUNT]: a from registers, b by `summed_along_columns`.
template <class Element>
DEVICE void multiply_columns(float (&sums)[32], const uint32_t* a, uint64_t b);
template <class Element>
DEVICE void multiply_columns(float (&sums)[64], const uint32_t* a, uint64_t b);

// The flags at the end of an instruction: what is there counts; neither operand is negated; a, b lie along the sum
// (0), or across it (1).
#define UNDIVIDED_WGMMA(Element, type)                                                                                 \
  template <>                                                                                                          \
  DEVICE void multiply_rows<Element>(float (&sums)[32], uint64_t a, uint64_t b, bool add) {                            \
    asm volatile(                                                                                                      \
        "{\n"                                                                                                          \
        ".reg .pred add;\n"                                                                                            \
        "setp.ne.b32 add, %34, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" UNDIVIDED_NAMES_32                            \
        "}, %32, %33, add, 1, 1, 0, 0;\n"                                                                              \
        "}\n"                                                                                                          \
        : UNDIVIDED_32(sums)                                                                                           \
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));                                                             \
  }                                                                                                                    \
  template <>                                                                                                          \
  DEVICE void multiply_turned<Element>(float (&sums)[32], uint64_t a, uint64_t b, bool add) {                          \
    asm volatile(                                                                                                      \
        "{\n"                                                                                                          \
        ".reg .pred add;\n"                                                                                            \
        "setp.ne.b32 add, %34, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" UNDIVIDED_NAMES_32                            \
        "}, %32, %33, add, 1, 1, 1, 1;\n"                                                                              \
        "}\n"                                                                                                          \
        : UNDIVIDED_32(sums)                                                                                           \
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));                                                             \
  }                                                                                                                    \
  template <>                                                                                                          \
  DEVICE void multiply_rows<Element>(float (&sums)[64], uint64_t a, uint64_t b, bool add) {                            \
    asm volatile(                                                                                                      \
        "{\n"                                                                                                          \
        ".reg .pred add;\n"                                                                                            \
        "setp.ne.b32 add, %66, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" UNDIVIDED_NAMES_64                           \
        "}, %64, %65, add, 1, 1, 0, 0;\n"                                                                              \
        "}\n"                                                                                                          \
        : UNDIVIDED_64(sums)                                                                                           \
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));                                                             \
  }                                                                                                                    \
  template <>                                                                                                          \
  DEVICE void multiply_plain<Element>(float (&sums)[64], uint64_t a, uint64_t b, bool add) {                           \
    asm volatile(                                                                                                      \
        "{\n"                                                                                                          \
        ".reg .pred add;\n"                                                                                            \
        "setp.ne.b32 add, %66, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" UNDIVIDED_NAMES_64                           \
        "}, %64, %65, add, 1, 1, 0, 1;\n"                                                                              \
        "}\n"                                                                                                          \
        : UNDIVIDED_64(sums)                                                                                           \
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));                                                             \
  }                                                                                                                    \
  template <>                                                                                                          \
  DEVICE void multiply_columns<Element>(float (&sums)[32], const uint32_t* a, uint64_t b) {                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" UNDIVIDED_NAMES_32                   \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                                         \
                 : UNDIVIDED_32(sums)                                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                \
  }                                                                                                                    \
  template <>                                                                                                          \
  DEVICE void multiply_columns<Element>(float (&sums)[64], const uint32_t* a, uint64_t b) {                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" UNDIVIDED_NAMES_64                  \
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                                         \
                 : UNDIVIDED_64(sums)                                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                \
  }

UNDIVIDED_WGMMA(Bfloat16, "bf16")
UNDIVIDED_WGMMA(Float16, "f16")

#undef UNDIVIDED_WGMMA
#undef UNDIVIDED_NAMES_64
#undef UNDIVIDED_NAMES_32
#undef UNDIVIDED_64
#undef UNDIVIDED_32
#undef UNDIVIDED_16
#undef UNDIVIDED_4

}  // namespace undivided::cuda

#endif
