// What this processor is to the libraries that multiply matrices, so that callers know which of them is fast on it.
#pragma once

namespace undivided {

// MKL keeps its best code for Intel's own processors: oneDNN is faster than MKL in float32 on others.
bool made_by_intel();
// Twice as fast where vectors of 16 floats have the rate of those of 8, to which MKL keeps there.
bool mkl_runs_at_half_rate();
// oneDNN multiplies bfloat16 faster than float32 where the processor has tiles (AMX) or fast dot products. Elsewhere on
// x86-64 it is slower, by half on Emerald Rapids. What is not x86-64 is not known and taken to be fast.
bool bfloat16_products_are_fast();

}  // namespace undivided
