#include "norm_backward.h"

namespace undivided::UNDIVIDED_VARIANT {

void layer_norm_backward(const NormBackward& call) { norm_backward<true>(call); }

}  // namespace undivided::UNDIVIDED_VARIANT
