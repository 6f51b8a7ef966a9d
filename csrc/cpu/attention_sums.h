// What the backward of attention needs before and after its main part: sums over rows, in an order of their own.
#pragma once

#include <cmath>

#include "attention_memory.h"
#include "exp2.h"
#include "pack.h"

namespace undivided::UNDIVIDED_VARIANT {

// Before: lse2 and delta of every row of one head, and the sum that the gradient of its sink has from one sequence. The
// sink's probability of a row is exp(sink - lse); the loss falls with it as the row's other probabilities shrink.
template <class T>
void row_sums(const AttentionBackward& job, int64_t b, int64_t h) {
  const AttentionCall& call = job.call;
  const Sequence sequence = sequence_of(call, b);
  const int64_t at = b * job.lse_b + h * job.lse_h + sequence.first_q;
  float sinks = 0.0F;
  for (int64_t i = 0; i < sequence.lenq; ++i) {
    const T* out = row_of<T>(job.out, b, h, sequence.first_q + i);
    const T* dout = row_of<T>(job.dout, b, h, sequence.first_q + i);
    const float lse = job.lse[at + i];
    float delta = dot(out, dout, static_cast<int>(call.head_dim_v));
    if (job.dlse != nullptr) delta -= job.dlse[at + i];
    job.lse2[at + i] = lse == -kInfinity ? kInfinity : lse * kLog2E;
    job.delta[at + i] = delta;
    if (job.sink_sums != nullptr && lse != -kInfinity) sinks -= std::exp(call.sinks[h] - lse) * delta;
  }
  if (job.sink_sums != nullptr) job.sink_sums[b * call.nheads + h] = sinks;
}

// After: the gradient of the sinks.
inline void add_sink_sums(const AttentionBackward& job) {
  const AttentionCall& call = job.call;
  for (int64_t h = 0; h < call.nheads; ++h) {
    float total = 0.0F;
    for (int64_t b = 0; b < call.batch; ++b) total += job.sink_sums[b * call.nheads + h];
    job.dsinks[h] = total;
  }
}

// After: dq from the parts of the chunks.
template <class T>
void add_query_parts(const AttentionBackward& job) {
  const AttentionCall& call = job.call;
  const int64_t row = round_up(call.head_dim, kGradientAlign);
  parallel_for(call.batch * call.nheads, call.threads, [&](int64_t task) {
    const int64_t b = task / call.nheads, h = task % call.nheads;
    const Sequence sequence = sequence_of(call, b);
    for (int64_t i = 0; i < sequence.lenq; ++i) {
      float* total = job.dq_parts + (b * job.lse_b + h * job.lse_h + sequence.first_q + i) * row;
      for (int64_t chunk = 1; chunk < job.chunks; ++chunk) {
        const float* more = total + chunk * job.lse_size * row;
        for (int64_t c = 0; c < row; c += kLanes) store(total + c, load(total + c) + load(more + c));
      }
      T* dq = row_of<T>(job.dq, b, h, sequence.first_q + i);
      unpack_row(total, dq, static_cast<int>(call.head_dim), call.scale);
    }
  });
}

// After: the gradient of the relative table from the sums by distance.
inline void add_distance_sums(const AttentionBackward& job) {
  const AttentionCall& call = job.call;
  const int64_t width = 2 * call.span + 1;
  for (int64_t part = 0; part < job.chunks * call.batch; ++part) {
    for (int64_t h = 0; h < call.nheads; ++h) {
      const float* sums = job.distance_sums + (part * call.nheads + h) * width;
      for (int64_t d = 0; d < width; ++d) job.dtable[call.buckets[d] * call.nheads + h] += sums[d];
    }
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
