// Rotary, straight from the op's arguments: true where it ran, false where a check in Python must look.
#include <algorithm>

#include "../cpu/dtype.h"
#include "../cpu/rotary.h"

#include "exchange.h"
#include "registry.h"

namespace {

using namespace undivided;
using pybind11::handle;

// float32 (longest, half), contiguous.
bool table_of(handle object, int64_t half, int64_t& longest, const float*& data) {
  TensorView view;
  if (!view_of(object, view) || view.kernel_dtype() != kFloat32 || view.dims != 2 || !view.contiguous()) return false;
  data = static_cast<const float*>(view.data);
  longest = view.shape[0];
  return view.shape[1] == half;
}

// int64 (seqlen,) or (batch, seqlen), each from 0 to longest - 1.
bool positions_of(handle object, Rotary& call) {
  TensorView view;
  if (!view_of(object, view) || !view.is_int64() || !view.contiguous() || view.dims < 1 || view.dims > 2) return false;
  const bool by_row = view.dims == 2;
  if (view.shape[view.dims - 1] != call.seqlen || (by_row && view.shape[0] != call.batch)) return false;
  call.positions = static_cast<const int64_t*>(view.data);
  call.positions_b = by_row ? call.seqlen : 0;
  call.positions_s = 1;
  const int64_t count = by_row ? call.batch * call.seqlen : call.seqlen;
  return std::all_of(call.positions, call.positions + count, [&](int64_t p) { return p >= 0 && p < call.longest; });
}

// x (batch, seqlen, nheads, 2 * half); y like x, contiguous.
bool rotary_direct(handle x, handle cos, handle sin, handle positions, handle y, bool inverse, int threads) {
  TensorView from, to;
  Rotary call{};
  if (!view_of(x, from) || from.dims != 4 || from.strides[3] != 1 || from.shape[3] % 2 != 0) return false;
  call.dtype = from.kernel_dtype();
  if (call.dtype < 0) return false;
  if (!view_of(y, to) || to.kernel_dtype() != call.dtype || !to.same_shape(from) || !to.contiguous()) return false;
  call.x = from.data;
  call.y = to.data;
  call.batch = from.shape[0];
  call.seqlen = from.shape[1];
  call.nheads = from.shape[2];
  call.half = from.shape[3] / 2;
  call.x_b = from.strides[0];
  call.x_s = from.strides[1];
  call.x_h = from.strides[2];
  int64_t rows_of_sin = 0;
  if (!table_of(cos, call.half, call.longest, call.cos) || !table_of(sin, call.half, rows_of_sin, call.sin)) return false;
  if (rows_of_sin != call.longest) return false;
  if (positions.is_none() ? call.longest < call.seqlen : !positions_of(positions, call)) return false;
  call.inverse = inverse;
  call.threads = threads;
  without_lock(UNDIVIDED_PICK(rotary), call);
  return true;
}

}  // namespace

UNDIVIDED_BINDINGS(rotary_direct, module) { module.def("rotary_direct", &rotary_direct); }
