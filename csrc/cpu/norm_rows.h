// What the forward and backward of both norms share.
#pragma once

#include "blocks.h"
#include "norm.h"
#include "row_tasks.h"
#include "streaming.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

// Rows that are worked on together: they share the loads of the weight, and their sums need not wait for one another.
// Measured on Zen 4, float32: 2 beats 1 by 10 to 25 % while rows are in the second-level cache, 4 is no better (x, dy
// and the weight gradients of 1024 columns no longer fit in the first). From memory 1 is best: one stream to prefetch.
constexpr int rows_together(bool streaming) { return streaming ? 1 : 2; }

}  // namespace undivided::UNDIVIDED_VARIANT
