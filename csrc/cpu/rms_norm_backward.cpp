#include "norm_backward.h"

namespace undivided::UNDIVIDED_VARIANT {

void rms_norm_backward(const NormBackward& call) { norm_backward<false>(call); }

}  // namespace undivided::UNDIVIDED_VARIANT
