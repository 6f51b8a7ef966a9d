// The linear map of a few rows. The address of an absent bias is 0.
#include "../cpu/linear.h"

#include "registry.h"

using undivided::pointer;

UNDIVIDED_BINDINGS(linear, module) {
  module.def("linear", [](uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int64_t rows, int64_t columns,
                          int64_t outputs, int64_t w_row, int dtype, int threads) {
    const undivided::Linear call{pointer<void>(x), pointer<void>(w), pointer<void>(bias), pointer<void>(y), rows,
                                 columns,          outputs,          w_row,               dtype,            threads};
    undivided::without_lock(UNDIVIDED_PICK(linear), call);
  });
}
