#include "attention_decode.h"

namespace undivided::UNDIVIDED_VARIANT {

void attention_decode(const AttentionDecode& job) {
  if (job.attention.call.dtype == kFloat32) return decode_typed<float, float>(job);
  if (job.attention.call.dtype == kFloat16) return decode_typed<float16, float>(job);
#if defined(__AVX512BF16__)
  if (multiplies_pairs()) return decode_typed<bfloat16, Pair>(job);
#endif
  decode_typed<bfloat16, float>(job);
}

}  // namespace undivided::UNDIVIDED_VARIANT
