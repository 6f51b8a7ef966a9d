// Rotary position embedding. The address of absent positions is 0.
#include "../cpu/rotary.h"

#include "registry.h"

using undivided::pointer;
using undivided::Rotary;
using undivided::without_lock;

UNDIVIDED_BINDINGS(rotary, module) {
  module.def("rotary", [](uintptr_t x, uintptr_t cos, uintptr_t sin, uintptr_t positions, uintptr_t starts,
                          int64_t shift, uintptr_t y, int64_t batch, int64_t seqlen, int64_t nheads, int64_t half,
                          int64_t longest, int64_t x_b, int64_t x_s, int64_t x_h, int64_t positions_b,
                          int64_t positions_s, bool inverse, int dtype, int threads) {
    const Rotary call{pointer<void>(x), pointer<float>(cos), pointer<float>(sin), pointer<int64_t>(positions),
                      pointer<int32_t>(starts), shift, pointer<void>(y), batch, seqlen, nheads, half, longest, x_b,
                      x_s, x_h, positions_b, positions_s, inverse, dtype, threads};
    without_lock(UNDIVIDED_PICK(rotary), call);
  });
}
