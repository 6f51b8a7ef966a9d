// Where the keys and values of a row lie in its caches, and how new ones get there.
#pragma once

#include "attention_blocks.h"

namespace undivided::UNDIVIDED_VARIANT {

inline Sequence sequence_of(const AttentionDecode& job, int64_t b) {
  Sequence s = sequence_of(job.attention.call, b);
  if (job.cache_lengths == nullptr) return s;
  s.lenk = job.cache_lengths[b] + job.seqlen_new;
  s.at = s.lenk - s.lenq;
  return s;
}

// Positions that follow one another at the strides of the caches: all of them, or those of one block.
template <class T>
struct Stretch {
  T *k, *v;
  int64_t count;
};

template <class T>
inline Stretch<T> stretch_of(const AttentionDecode& job, int64_t b, int64_t head_kv, int64_t position, int64_t end) {
  const AttentionCall& call = job.attention.call;
  int64_t block = b, slot = position, count = end - position;
  if (job.blocks != nullptr) {
    block = job.blocks[b * job.blocks_b + position / job.block_size];
    slot = position % job.block_size;
    count = smaller(count, job.block_size - slot);
  }
  return {row_of<T>(call.k, block, head_kv, slot), row_of<T>(call.v, block, head_kv, slot), count};
}

// Writes the new keys and values of one head at the positions of `fresh` into the caches.
template <class T>
inline void append(const AttentionDecode& job, const Sequence& sequence, int64_t head_kv, Range fresh) {
  const AttentionCall& call = job.attention.call;
  const int64_t b = sequence.b, first = sequence.lenk - job.seqlen_new;
  for (int64_t position = fresh.low; position < fresh.high; ++position) {
    const Stretch<T> to = stretch_of<T>(job, b, head_kv, position, fresh.high);
    std::memmove(to.k, row_of<T>(job.k, b, head_kv, position - first), call.head_dim * sizeof(T));
    std::memmove(to.v, row_of<T>(job.v, b, head_kv, position - first), call.head_dim_v * sizeof(T));
  }
}

}  // namespace undivided::UNDIVIDED_VARIANT
