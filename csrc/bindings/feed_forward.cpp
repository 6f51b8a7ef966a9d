// The feed-forward network between its matrix products. Addresses of absent tensors are 0.
#include "../cpu/feed_forward.h"

#include "registry.h"

using undivided::pointer;

UNDIVIDED_BINDINGS(feed_forward, module) {
  module.def("feed_forward_forward",
             [](uintptr_t h, uintptr_t bias, uintptr_t gate, uintptr_t kept, uintptr_t a, int64_t rows, int64_t columns,
                int dtype, int activation, int threads) {
               const undivided::FeedForwardForward call{
                   pointer<void>(h), pointer<void>(bias), pointer<void>(gate), pointer<void>(kept), pointer<void>(a),
                   rows,             columns,             dtype,               activation,          threads};
               undivided::without_lock(UNDIVIDED_PICK(feed_forward_forward), call);
             });
  module.def("feed_forward_backward",
             [](uintptr_t da, uintptr_t h, uintptr_t gate, uintptr_t dh, uintptr_t dgate, uintptr_t a, uintptr_t dbias,
                int64_t rows, int64_t columns, int dtype, int activation, int threads) {
               const undivided::FeedForwardBackward call{
                   pointer<void>(da),    pointer<void>(h), pointer<void>(gate),  pointer<void>(dh),
                   pointer<void>(dgate), pointer<void>(a), pointer<void>(dbias), rows,
                   columns,              dtype,            activation,           threads};
               undivided::without_lock(UNDIVIDED_PICK(feed_forward_backward), call);
             });
}
