// What this processor is to the libraries that multiply matrices, so that callers know which of them is fast on it.
#pragma once

namespace undivided {

// MKL keeps its best code for Intel's own processors: oneDNN is faster than MKL in float32 on others.
bool made_by_intel();
// Not Intel's, and vectors of 16 floats have the rate of those of 8: Zen 5 so far. MKL keeps to 8 there, so oneDNN is twice
// as fast; and memory is fetched ahead without being asked (attention_decode.h).
bool is_wide_and_not_intels();
// oneDNN multiplies bfloat16 faster than float32 where the processor has tiles (AMX) or fast dot products. Elsewhere on
// x86-64 it is slower, by half on Emerald Rapids. What is not x86-64 is not known and taken to be fast.
bool bfloat16_products_are_fast();

}  // namespace undivided
