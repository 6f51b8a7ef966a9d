// What a running softmax ends with: out and lse from its sums.
#pragma once

#include "attention_blocks.h"
#include "exp2.h"
#include "pack.h"

namespace undivided::UNDIVIDED_VARIANT {

// out = acc / total and lse of the queries i to i + rows (at most kLanes) of one head. acc: rows of `acc_row` floats.
template <class T>
void finish_rows(const AttentionForward& job, const Sequence& sequence, int64_t h, int64_t i, int rows, Vec top,
                 Vec total, const float* acc, int64_t acc_row) {
  const AttentionCall& call = job.call;
  Vec shrink = broadcast(1.0F);
  const IntVec empty = total == 0.0F;
  if (call.sinks != nullptr) {
    const Vec sink = broadcast(call.sinks[h] * kLog2E), higher = max(sink, top);
    shrink = exp2<5>(top - higher);
    total = total * shrink + exp2<5>(sink - higher);
    top = higher;
  }
  const Vec weight = shrink / total;
  if (job.lse != nullptr) {
    const Vec lse = select(empty, broadcast(-kInfinity), (top + log2(total)) * kLn2);
    float* lse_row = job.lse + sequence.b * job.lse_b + h * job.lse_h + sequence.first_q + i;
    if (rows == kLanes) store(lse_row, lse);
    if (rows < kLanes) store_part(lse_row, lse, rows);
  }
  for (int r = 0; r < rows; ++r) {
    T* out = row_of<T>(job.out, sequence.b, h, sequence.first_q + i + r);
    if (empty[r] != 0) {  // perhaps nothing was ever summed
      std::memset(out, 0, call.head_dim_v * sizeof(T));
    } else {
      unpack_row(acc + r * acc_row, out, static_cast<int>(call.head_dim_v), weight[r]);
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
