#include "norm_forward.h"

namespace undivided::UNDIVIDED_VARIANT {

void rms_norm_forward(const NormForward& call) { norm_forward<false>(call); }

}  // namespace undivided::UNDIVIDED_VARIANT
