// What goes before the attention backward and after it, by rows: statistics and sums of 0; sums to dq.
#pragma once

#include "attention_block.cuh"
#include "softmax.cuh"

namespace undivided::cuda {

// Where the rows of a sequence begin in the statistics and sums, which are padded to whole tiles.
DEVICE int64_t padded_row(const AttentionForward& call, const AttentionBackward& job, int b, int h, const Sequence& at) {
  if (call.cu_q == nullptr) return (static_cast<int64_t>(b) * call.nheads + h) * job.rows_padded;
  return h * job.rows_padded + (at.first_q + static_cast<int64_t>(b) * kPadding) / kPadding * kPadding;
}

// ---- before: what a row needs, and sums of 0 ----

// One block of 128 threads for 64 rows of one head. delta = sum(out * dout) - dlse; lse2 = lse * log2(e), inf for a row
// that saw nothing or lies outside, so that its probabilities come out 0.
template <class Element, int HEAD_DIM>
DEVICE void prepare_rows(const AttentionBackward& job, int block, int h, int b) {
  const AttentionForward& call = job.call;
  const Sequence at = sequence_of(call, b);
  const int rows = (call.cu_q != nullptr ? at.lenq : call.seqlen_q), first = block * kGroupRows;
  if (first >= (rows + kPadding - 1) / kPadding * kPadding) return;
  const int64_t padded = padded_row(call, job, b, h, at) + first;
  constexpr int SHARE = HEAD_DIM / 8;  // threads of a row
  const int thread = thread_index(), d = thread % SHARE * 8;
  const auto* out = static_cast<const uint16_t*>(call.out.data) + b * call.out.b + h * call.out.h + d;
  const auto* dout = static_cast<const uint16_t*>(job.dout.data) + b * job.dout.b + h * job.dout.h + d;
  for (int r = thread / SHARE; r < kGroupRows; r += kGroup / SHARE) {
    const bool inside = first + r < at.lenq;
    float sum = 0.0F;
    if (inside) {
      const int64_t row = at.first_q + first + r;
      const Chunk x = *reinterpret_cast<const Chunk*>(out + row * call.out.s);
      const Chunk y = *reinterpret_cast<const Chunk*>(dout + row * job.dout.s);
#pragma unroll
      for (int n = 0; n < 4; ++n) sum += product_of_halves<Element>(x.words[n], y.words[n]);
    }
#pragma unroll
    for (int lanes = 1; lanes < SHARE; lanes *= 2) sum += shuffle_xor(sum, lanes);
    if (d == 0) {
      const int64_t from = b * call.lse_b + h * call.lse_h + at.first_q + first + r;
      const float natural = inside ? call.lse[from] : -kInfinity;
      job.lse2[padded + r] = natural == -kInfinity ? kInfinity : natural * kLog2e;
      job.delta[padded + r] = inside ? sum - (job.dlse == nullptr ? 0.0F : job.dlse[from]) : 0.0F;
    }
  }
  auto* sums = reinterpret_cast<Chunk*>(job.sums + padded * HEAD_DIM);
  for (int n = thread; n < kGroupRows * HEAD_DIM / 4; n += kGroup) sums[n] = Chunk{};
}

// ---- after: sums to dq ----

// The place of a thread's element 4 * n of the 64 x 64 sums of a warpgroup: neighbours in a warp are neighbours there.
HOST_DEVICE int sum_place(int n, int thread) { return (n * kGroup + thread) * 4; }

template <class Element, int HEAD_DIM>
DEVICE void finish_rows(const AttentionBackward& job, int block, int h, int b) {
  const AttentionForward& call = job.call;
  const Sequence at = sequence_of(call, b);
  const int rows = call.cu_q != nullptr ? at.lenq : call.seqlen_q, first = block * kGroupRows;
  if (first >= rows) return;
  const int64_t padded = padded_row(call, job, b, h, at) + first;
  auto* dq = static_cast<uint16_t*>(job.dq.data) + b * job.dq.b + h * job.dq.h;
  // The four threads of a quad had 8 columns of two rows: 64 bytes. Eight threads take a row's 64 columns.
  constexpr int QUADS = kGroup / 4, COLUMNS = kPanel / 8;
#pragma unroll
  for (int unit = thread_index(); unit < HEAD_DIM / kPanel * QUADS * COLUMNS; unit += kGroup) {
    const int n = unit % COLUMNS, quad = unit / COLUMNS % QUADS, panel = unit / COLUMNS / QUADS;
    const float* sums = job.sums + padded * HEAD_DIM + panel * kGroupRows * kPanel + sum_place(n, quad * 4);
    Four four[4];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) four[lane] = reinterpret_cast<const Four*>(sums)[lane];
    const int row = first + fragment_row(quad * 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + 8 * half >= rows) continue;
      Chunk chunk;
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const float* pair = four[lane].values + 2 * half;
        chunk.words[lane] = packed<Element>(pair[0] * call.scale, pair[1] * call.scale);
      }
      *reinterpret_cast<Chunk*>(dq + (at.first_q + row + 8 * half) * job.dq.s + panel * kPanel + n * 8) = chunk;
    }
  }
}

template <class K>
KERNEL(kGroup)
attention_prepare_kernel(const GRID_CONSTANT AttentionBackward job) {
  prepare_rows<typename K::Element, K::HEAD_DIM>(job, block_index(), block_index(1), block_index(2));
}

template <class K>
KERNEL(kGroup)
attention_finish_kernel(const GRID_CONSTANT AttentionBackward job) {
  finish_rows<typename K::Element, K::HEAD_DIM>(job, block_index(), block_index(1), block_index(2));
}

}  // namespace undivided::cuda
