// Layer norm and RMS norm. Addresses of absent tensors are 0.
#include "../cpu/norm.h"

#include "registry.h"

namespace {

using undivided::NormBackward;
using undivided::NormForward;
using undivided::pointer;
using undivided::without_lock;

}  // namespace

UNDIVIDED_BINDINGS(norm, module) {
  module.def("layer_norm_forward",
             [](uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias, uintptr_t y, uintptr_t summed,
                uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t columns, float eps, int dtype, int weight_dtype,
                int bias_dtype, int threads) {
               const NormForward call{pointer<void>(x), pointer<void>(residual), pointer<void>(weight),
                                      pointer<void>(bias), pointer<void>(y), pointer<void>(summed),
                                      pointer<float>(mean), pointer<float>(rstd), rows, columns, eps, dtype,
                                      weight_dtype, bias_dtype, threads};
               without_lock(UNDIVIDED_PICK(layer_norm_forward), call);
             });
  module.def("layer_norm_backward",
             [](uintptr_t dy, uintptr_t dsummed, uintptr_t x, uintptr_t weight, uintptr_t mean, uintptr_t rstd,
                uintptr_t dx, uintptr_t dweight, uintptr_t dbias, int64_t rows, int64_t columns, int dtype,
                int weight_dtype, int bias_dtype, int threads) {
               const NormBackward call{pointer<void>(dy), pointer<void>(dsummed), pointer<void>(x),
                                       pointer<void>(weight), pointer<float>(mean), pointer<float>(rstd),
                                       pointer<void>(dx), pointer<void>(dweight), pointer<void>(dbias), rows, columns,
                                       dtype, weight_dtype, bias_dtype, threads};
               without_lock(UNDIVIDED_PICK(layer_norm_backward), call);
             });
  module.def("rms_norm_forward",
             [](uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t y, uintptr_t summed, uintptr_t rstd,
                int64_t rows, int64_t columns, float eps, int dtype, int weight_dtype, int threads) {
               const NormForward call{pointer<void>(x), pointer<void>(residual), pointer<void>(weight), nullptr,
                                      pointer<void>(y), pointer<void>(summed), nullptr, pointer<float>(rstd), rows,
                                      columns, eps, dtype, weight_dtype, weight_dtype, threads};
               without_lock(UNDIVIDED_PICK(rms_norm_forward), call);
             });
  module.def("rms_norm_backward",
             [](uintptr_t dy, uintptr_t dsummed, uintptr_t x, uintptr_t weight, uintptr_t rstd, uintptr_t dx,
                uintptr_t dweight, int64_t rows, int64_t columns, int dtype, int weight_dtype, int threads) {
               const NormBackward call{pointer<void>(dy), pointer<void>(dsummed), pointer<void>(x),
                                       pointer<void>(weight), nullptr, pointer<float>(rstd), pointer<void>(dx),
                                       pointer<void>(dweight), nullptr, rows, columns, dtype, weight_dtype,
                                       weight_dtype, threads};
               without_lock(UNDIVIDED_PICK(rms_norm_backward), call);
             });
}
