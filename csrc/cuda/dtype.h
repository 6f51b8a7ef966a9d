// The element types of the CUDA C++ kernels.
#pragma once

#include <cstdint>

namespace undivided::cuda {

enum class Dtype : int32_t { bfloat16 = 1, float16 = 2 };  // the codes of csrc/cpu/dtype.h

}  // namespace undivided::cuda
