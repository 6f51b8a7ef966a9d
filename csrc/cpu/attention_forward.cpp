#include "attention_forward.h"

namespace undivided::UNDIVIDED_VARIANT {

// Queries of all heads that share a key head, up to which packing the keys for them costs more than it saves.
constexpr int64_t kFewRows = 8;

inline bool few_queries(const AttentionCall& call) {
  const bool plain = call.cu_q == nullptr && call.query_lengths == nullptr && !call.dropout;
  return plain && call.nheads / call.nheads_kv * call.seqlen_q <= kFewRows;
}

void attention_forward(const AttentionForward& job) {
  if (!job.in_tiles && few_queries(job.call)) {
    return attention_decode(AttentionDecode{job, nullptr, {}, {}, 0, nullptr, 0, 0});
  }
  if (job.call.dtype == kFloat32) return forward_typed<float, float>(job);
  if (job.call.dtype == kFloat16) return forward_typed<float16, float>(job);
#if defined(__AVX512BF16__)
  if (multiplies_pairs()) return forward_typed<bfloat16, Pair>(job);
#endif
  forward_typed<bfloat16, float>(job);
}

}  // namespace undivided::UNDIVIDED_VARIANT
