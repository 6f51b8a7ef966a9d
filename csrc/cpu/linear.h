// x w^T + bias of a few rows, as plain data: each weight is read once, in its own order, and nothing is laid out anew.
// More rows are taken few at a time, with the same bits for each.
#pragma once

#include <cstdint>

#include "variant.h"

namespace undivided {

constexpr int64_t kMostLinearRows = 16;  // at a time; with more the library's blocks are worth laying the weight out

struct Linear {
  const void* x;     // (rows, columns), dtype, contiguous
  const void* w;     // (outputs, columns), dtype, rows w_row elements apart
  const void* bias;  // (outputs,), dtype, or null
  void* y;           // (rows, outputs), dtype, contiguous
  int64_t rows, columns, outputs, w_row;
  int dtype, threads;
};

}  // namespace undivided

UNDIVIDED_DECLARE(void linear(const Linear& call))
