#include "attention_backward.h"

namespace undivided::UNDIVIDED_VARIANT {

void attention_backward(const AttentionBackward& job) {
  if (job.call.dtype == kFloat32) return backward_typed<float, float>(job);
  if (job.call.dtype == kFloat16) return backward_typed<float16, float>(job);
#if defined(__AVX512BF16__)
  if (multiplies_pairs()) return backward_typed<bfloat16, Pair>(job);
#endif
  backward_typed<bfloat16, float>(job);
}

}  // namespace undivided::UNDIVIDED_VARIANT
