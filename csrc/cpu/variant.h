// One source, several instruction sets. A kernel file is compiled once per variant, each time with
// UNDIVIDED_VARIANT set to the variant's name, which is also the namespace that its code lives in:
//
//   namespace undivided::UNDIVIDED_VARIANT { void layer_norm_forward(const LayerNormForward& call) { ... } }
//
// A header declares the entry points for all variants with UNDIVIDED_DECLARE, and the binding calls the one that
// the processor can run:
//
//   UNDIVIDED_DECLARE(void layer_norm_forward(const LayerNormForward& call))
//   UNDIVIDED_PICK(layer_norm_forward)(call);
//
// Kernel files must not instantiate templates of the standard library (std::vector, std::function...): the linker
// keeps one copy of such a function for the whole program, perhaps the one with instructions this processor lacks.
#pragma once

// The build says which variants it compiled (old compilers lack some); portable is always there.
#ifndef UNDIVIDED_HAS_AVX2
#define UNDIVIDED_HAS_AVX2 0
#endif
#ifndef UNDIVIDED_HAS_AVX512
#define UNDIVIDED_HAS_AVX512 0
#endif
#ifndef UNDIVIDED_HAS_AVX512_BF16
#define UNDIVIDED_HAS_AVX512_BF16 0
#endif

namespace undivided {

// avx512_bf16_dots is the code of avx512_bf16 that also multiplies pairs of bfloat16, where that is faster (dot_speed.h);
// avx512_bf16 itself only converts with that instruction set.
enum class Variant : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, avx512_bf16_dots = 4 };

// The variant that calls run on now: the best one at first, unless set_variant chose another.
Variant current_variant();
const char* variant_name(Variant variant);
// False when the name is unknown, the variant was not compiled, or this processor cannot run it.
bool set_variant(const char* name);
bool variant_available(Variant variant);
// Of this processor, measured once (dot_speed.h); false without the instructions.
bool dots_are_faster();
bool multiplies_whole_vectors();
inline bool multiplies_pairs() { return current_variant() == Variant::avx512_bf16_dots; }

}  // namespace undivided

#define UNDIVIDED_DECLARE_IN(variant, ...) \
  namespace undivided::variant {           \
  __VA_ARGS__;                             \
  }

#if UNDIVIDED_HAS_AVX2
#define UNDIVIDED_DECLARE_AVX2(...) UNDIVIDED_DECLARE_IN(avx2, __VA_ARGS__)
#define UNDIVIDED_CASE_AVX2(name) ::undivided::current_variant() == ::undivided::Variant::avx2 ? &::undivided::avx2::name:
#else
#define UNDIVIDED_DECLARE_AVX2(...)
#define UNDIVIDED_CASE_AVX2(name)
#endif
#if UNDIVIDED_HAS_AVX512
#define UNDIVIDED_DECLARE_AVX512(...) UNDIVIDED_DECLARE_IN(avx512, __VA_ARGS__)
#define UNDIVIDED_CASE_AVX512(name) ::undivided::current_variant() == ::undivided::Variant::avx512 ? &::undivided::avx512::name:
#else
#define UNDIVIDED_DECLARE_AVX512(...)
#define UNDIVIDED_CASE_AVX512(name)
#endif
#if UNDIVIDED_HAS_AVX512_BF16
#define UNDIVIDED_DECLARE_AVX512_BF16(...) UNDIVIDED_DECLARE_IN(avx512_bf16, __VA_ARGS__)
#define UNDIVIDED_CASE_AVX512_BF16(name) \
  ::undivided::current_variant() >= ::undivided::Variant::avx512_bf16 ? &::undivided::avx512_bf16::name:
#else
#define UNDIVIDED_DECLARE_AVX512_BF16(...)
#define UNDIVIDED_CASE_AVX512_BF16(name)
#endif

// Declares a function in the namespace of every variant that was compiled.
#define UNDIVIDED_DECLARE(...)               \
  UNDIVIDED_DECLARE_IN(portable, __VA_ARGS__) \
  UNDIVIDED_DECLARE_AVX2(__VA_ARGS__)        \
  UNDIVIDED_DECLARE_AVX512(__VA_ARGS__)      \
  UNDIVIDED_DECLARE_AVX512_BF16(__VA_ARGS__)

// The function of that name for the current variant.
#define UNDIVIDED_PICK(name)         \
  (UNDIVIDED_CASE_AVX512_BF16(name)  \
   UNDIVIDED_CASE_AVX512(name)       \
   UNDIVIDED_CASE_AVX2(name)         \
   &::undivided::portable::name)
