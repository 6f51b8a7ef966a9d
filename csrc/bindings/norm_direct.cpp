// Layer norm and RMS norm without gradients, straight from the op's arguments: true where it ran, false where a check
// in Python must look.
#include "../cpu/norm.h"

#include "exchange.h"
#include "registry.h"

namespace {

using namespace undivided;

// (columns,) of any of the three dtypes, or None.
bool parameter(pybind11::handle object, int64_t columns, const void*& data, int& dtype) {
  if (object.is_none()) return true;
  TensorView view;
  if (!view_of(object, view) || view.dims != 1 || view.shape[0] != columns || !view.contiguous()) return false;
  data = view.data;
  dtype = view.kernel_dtype();
  return dtype >= 0;
}

bool like(pybind11::handle object, const TensorView& x, void*& data) {
  TensorView view;
  if (!view_of(object, view) || view.kernel_dtype() != x.kernel_dtype()) return false;
  if (!view.same_shape(x) || !view.contiguous()) return false;
  data = view.data;
  return true;
}

// y is like x; `summed` too, where there is a residual.
template <bool kCentered>
bool norm_direct(pybind11::handle x, pybind11::handle residual, pybind11::handle weight, pybind11::handle bias,
                 pybind11::handle y, pybind11::handle summed, pybind11::handle eps, int threads) {
  TensorView view;
  double epsilon = 0;
  if (!view_of(x, view) || view.dims == 0 || !view.contiguous() || !number_of(eps, epsilon)) return false;
  NormForward call{};
  call.dtype = call.weight_dtype = call.bias_dtype = view.kernel_dtype();
  if (call.dtype < 0 || epsilon < 0) return false;
  call.x = view.data;
  call.columns = view.shape[view.dims - 1];
  call.rows = 1;
  for (int i = 0; i + 1 < view.dims; ++i) call.rows *= view.shape[i];
  call.eps = static_cast<float>(epsilon);
  call.threads = threads;
  if (!parameter(weight, call.columns, call.weight, call.weight_dtype)) return false;
  if (!parameter(bias, call.columns, call.bias, call.bias_dtype)) return false;
  if (call.bias != nullptr && (call.weight == nullptr || call.bias_dtype != call.weight_dtype)) return false;
  void* added = nullptr;
  if (!residual.is_none() && (!like(residual, view, added) || !like(summed, view, call.summed))) return false;
  if (!like(y, view, call.y)) return false;
  call.residual = added;
  without_lock(kCentered ? UNDIVIDED_PICK(layer_norm_forward) : UNDIVIDED_PICK(rms_norm_forward), call);
  return true;
}

}  // namespace

UNDIVIDED_BINDINGS(norm_direct, module) {
  module.def("layer_norm_direct", &norm_direct<true>);
  module.def("rms_norm_direct", &norm_direct<false>);
}
