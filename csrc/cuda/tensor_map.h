// Boxes as the copy engine's own description of a tensor.
#pragma once

#include "boxes.h"
#include "dtype.h"
#include "ptx.cuh"
#include "runtime.h"

namespace undivided::cuda {

inline TensorMap tensor_map(const Boxes& boxes, Dtype dtype) {
  const auto type = dtype == Dtype::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const uint32_t steps[4] = {1, 1, 1, 1};
  TensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, type, 4, boxes.data, boxes.size, boxes.stride + 1, boxes.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw std::runtime_error(refused_map(boxes.size, boxes.stride, result));
  return map;
}

}  // namespace undivided::cuda
