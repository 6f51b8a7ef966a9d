#include "norm_forward.h"

namespace undivided::UNDIVIDED_VARIANT {

void layer_norm_forward(const NormForward& call) { norm_forward<true>(call); }

}  // namespace undivided::UNDIVIDED_VARIANT
