// Where the sequences of a batch lie, and which keys and queries see one another. Query i stands at i + at on the key
// axis and sees the keys from i + at - left to i + at + right, so far as there are any.
#pragma once

#include "attention.h"
#include "simd.h"

namespace undivided::UNDIVIDED_VARIANT {

// [low, high), empty when high <= low.
struct Range {
  int64_t low, high;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
// Rounded up; 0 for 0 / 0.
inline int64_t quotient(int64_t a, int64_t b) { return a == 0 ? 0 : (a + b - 1) / b; }
inline int64_t round_down(int64_t value, int64_t unit) { return value / unit * unit; }
inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct Sequence {
  int64_t b;
  int64_t first_q, lenq, rows_q;  // rows_q: how many rows the outputs have, padding included
  int64_t first_k, lenk;
  int64_t at;
};

inline Sequence sequence_of(const AttentionCall& call, int64_t b) {
  Sequence s{b, 0, call.seqlen_q, call.seqlen_q, 0, call.seqlen_k, call.shift};
  if (call.cu_q != nullptr) {
    s.first_q = call.cu_q[b];
    s.first_k = call.cu_k[b];
    s.rows_q = s.lenq = call.cu_q[b + 1] - s.first_q;
    s.lenk = call.cu_k[b + 1] - s.first_k;
    if (!call.own_shift) s.at = s.lenk - s.lenq;
  } else {
    if (call.query_lengths != nullptr) s.lenq = smaller(call.query_lengths[b], call.seqlen_q);
    if (call.key_lengths != nullptr) s.lenk = smaller(call.key_lengths[b], call.seqlen_k);
  }
  if (call.shifts != nullptr) s.at = call.shifts[b];
  return s;
}

// The keys that some of the queries first to last (inclusive) see.
inline Range keys_seen(const AttentionCall& call, const Sequence& s, int64_t first, int64_t last) {
  Range keys{0, s.lenk};
  if (call.has_left) keys.low = larger(0, first + s.at - call.left);
  if (call.has_right) keys.high = smaller(s.lenk, last + s.at + call.right + 1);
  return keys;
}

// The queries that see some of the keys first to last (inclusive).
inline Range queries_seeing(const AttentionCall& call, const Sequence& s, int64_t first, int64_t last) {
  Range queries{0, s.lenq};
  if (call.has_right) queries.low = larger(0, first - call.right - s.at);
  if (call.has_left) queries.high = smaller(s.lenq, last + call.left - s.at + 1);
  return queries;
}

// How many key heads one task works through, so that it can bring what the next one needs from memory while it works on
// one: few enough to leave every thread 16 tasks. At 128 queries and keys that is 1.0 to 1.2 times as fast.
inline int64_t heads_of_a_task(int64_t nheads_kv, int64_t tasks, int threads) {
  int64_t heads = 1;
  while (nheads_kv % (2 * heads) == 0 && tasks >= 2 * heads * 16 * threads) heads *= 2;
  return heads;
}

template <class T>
UNDIVIDED_INLINE T* row_of(const Rows& rows, int64_t b, int64_t h, int64_t row) {
  return static_cast<T*>(rows.data) + b * rows.b + h * rows.h + row * rows.s;
}

}  // namespace undivided::UNDIVIDED_VARIANT
