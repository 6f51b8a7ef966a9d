// Layer norm and RMS norm: the calls, as plain data. All matrices are (rows, columns), contiguous.
#pragma once

#include <cstdint>

#include "variant.h"

namespace undivided {

struct NormForward {
  const void* x;         // (rows, columns), dtype
  const void* residual;  // (rows, columns), dtype, or null
  const void* weight;    // (columns,), weight_dtype, or null for ones
  const void* bias;      // (columns,), weight_dtype, or null for zeros
  void* y;               // (rows, columns), dtype
  void* summed;          // (rows, columns), dtype: x + residual; null without residual
  float* mean;           // (rows,); null for RMS norm, and where nobody needs it
  float* rstd;           // (rows,), or null where nobody needs it
  int64_t rows, columns;
  float eps;
  int dtype, weight_dtype, bias_dtype;
  int threads;
};

struct NormBackward {
  const void* dy;       // (rows, columns), dtype
  const void* dsummed;  // (rows, columns), dtype, or null: the gradient that reaches x + residual from elsewhere
  const void* x;        // (rows, columns), dtype: what was normalised
  const void* weight;   // (columns,), weight_dtype, or null for ones
  const float* mean;    // (rows,); null for RMS norm
  const float* rstd;    // (rows,)
  void* dx;             // (rows, columns), dtype
  void* dweight;        // (columns,), weight_dtype, or null where not needed
  void* dbias;          // (columns,), bias_dtype, or null where not needed
  int64_t rows, columns;
  int dtype, weight_dtype, bias_dtype;
  int threads;
};

}  // namespace undivided

UNDIVIDED_DECLARE(void layer_norm_forward(const NormForward& call))
UNDIVIDED_DECLARE(void layer_norm_backward(const NormBackward& call))
UNDIVIDED_DECLARE(void rms_norm_forward(const NormForward& call))
UNDIVIDED_DECLARE(void rms_norm_backward(const NormBackward& call))
