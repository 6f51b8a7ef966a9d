#include "attention_forward.h"

namespace undivided::UNDIVIDED_VARIANT {

void attention_forward(const AttentionForward& job) {
  if (job.call.dtype == kFloat32) return forward_typed<float, float>(job);
  if (job.call.dtype == kFloat16) return forward_typed<float16, float>(job);
#if defined(__AVX512BF16__)
  forward_typed<bfloat16, Pair>(job);
#else
  forward_typed<bfloat16, float>(job);
#endif
}

}  // namespace undivided::UNDIVIDED_VARIANT
