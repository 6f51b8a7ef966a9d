// Layer norm and RMS norm, straight from the op's arguments: true where it ran, false where a check in Python must look.
#include "../cpu/dtype.h"
#include "../cpu/norm.h"

#include "exchange.h"
#include "registry.h"

namespace {

using namespace undivided;
using pybind11::handle;

// (columns,) of any of the three dtypes, or None.
bool parameter(handle object, int64_t columns, const void*& data, int& dtype) {
  if (object.is_none()) return true;
  TensorView view;
  if (!view_of(object, view) || view.dims != 1 || view.shape[0] != columns || !view.contiguous()) return false;
  data = view.data;
  dtype = view.kernel_dtype();
  return dtype >= 0;
}

bool like(handle object, const TensorView& x, void*& data) {
  TensorView view;
  if (!view_of(object, view) || view.kernel_dtype() != x.kernel_dtype()) return false;
  if (!view.same_shape(x) || !view.contiguous()) return false;
  data = view.data;
  return true;
}

// float32 (rows,), or None.
bool statistics(handle object, int64_t rows, float*& data) {
  TensorView view;
  if (object.is_none()) return true;
  if (!view_of(object, view) || view.kernel_dtype() != kFloat32 || view.dims != 1) return false;
  data = static_cast<float*>(view.data);
  return view.shape[0] == rows && view.contiguous();
}

int64_t rows_of(const TensorView& x) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < x.dims; ++i) rows *= x.shape[i];
  return rows;
}

// What goes in, of a call whose outputs are not there yet.
bool read(handle x, handle residual, handle weight, handle bias, handle eps, TensorView& view, NormForward& call) {
  double epsilon = 0;
  if (!view_of(x, view) || view.dims == 0 || !view.contiguous() || !number_of(eps, epsilon)) return false;
  call.dtype = call.weight_dtype = call.bias_dtype = view.kernel_dtype();
  if (call.dtype < 0 || epsilon < 0) return false;
  call.x = view.data;
  call.columns = view.shape[view.dims - 1];
  call.rows = rows_of(view);
  call.eps = static_cast<float>(epsilon);
  if (!parameter(weight, call.columns, call.weight, call.weight_dtype)) return false;
  if (!parameter(bias, call.columns, call.bias, call.bias_dtype)) return false;
  if (call.bias != nullptr && (call.weight == nullptr || call.bias_dtype != call.weight_dtype)) return false;
  void* added = nullptr;
  if (!residual.is_none() && !like(residual, view, added)) return false;
  call.residual = added;
  return true;
}

// y is like x; `summed` too, where there is a residual. mean and rstd may be None.
template <bool kCentered>
bool norm_direct(handle x, handle residual, handle weight, handle bias, handle y, handle summed, handle mean,
                 handle rstd, handle eps, int threads) {
  TensorView view;
  NormForward call{};
  if (!read(x, residual, weight, bias, eps, view, call) || !like(y, view, call.y)) return false;
  if (call.residual != nullptr && !like(summed, view, call.summed)) return false;
  if (!statistics(mean, call.rows, call.mean) || !statistics(rstd, call.rows, call.rstd)) return false;
  call.threads = threads;
  without_lock(kCentered ? UNDIVIDED_PICK(layer_norm_forward) : UNDIVIDED_PICK(rms_norm_forward), call);
  return true;
}

// dx is like x, dweight like weight, dbias too, or None; mean is None for RMS norm.
template <bool kCentered>
bool norm_backward_direct(handle dy, handle dsummed, handle x, handle weight, handle mean, handle rstd, handle dx,
                          handle dweight, handle dbias, int threads) {
  TensorView view;
  NormBackward call{};
  void *from_y = nullptr, *from_sum = nullptr;
  const void *of_weight = nullptr, *of_bias = nullptr;
  if (!view_of(x, view) || view.dims == 0 || !view.contiguous()) return false;
  call.dtype = call.weight_dtype = call.bias_dtype = view.kernel_dtype();
  if (call.dtype < 0 || !like(dy, view, from_y) || !like(dx, view, call.dx)) return false;
  if (!dsummed.is_none() && !like(dsummed, view, from_sum)) return false;
  call.dy = from_y;
  call.dsummed = from_sum;
  call.x = view.data;
  call.columns = view.shape[view.dims - 1];
  call.rows = rows_of(view);
  float *means = nullptr, *scales = nullptr;
  if (!statistics(mean, call.rows, means) || !statistics(rstd, call.rows, scales)) return false;
  if (scales == nullptr || kCentered != (means != nullptr)) return false;
  call.mean = means;
  call.rstd = scales;
  int dtype = call.dtype;
  if (!parameter(weight, call.columns, call.weight, dtype)) return false;
  call.weight_dtype = call.bias_dtype = dtype;
  int of_dweight = dtype, of_dbias = dtype;
  if (!parameter(dweight, call.columns, of_weight, of_dweight) || of_dweight != dtype) return false;
  if (!parameter(dbias, call.columns, of_bias, of_dbias) || of_dbias != dtype) return false;
  call.dweight = const_cast<void*>(of_weight);
  call.dbias = const_cast<void*>(of_bias);
  call.threads = threads;
  without_lock(kCentered ? UNDIVIDED_PICK(layer_norm_backward) : UNDIVIDED_PICK(rms_norm_backward), call);
  return true;
}

}  // namespace

UNDIVIDED_BINDINGS(norm_direct, module) {
  module.def("layer_norm_direct", &norm_direct<true>);
  module.def("rms_norm_direct", &norm_direct<false>);
  module.def("layer_norm_backward_direct", &norm_backward_direct<true>);
  module.def("rms_norm_backward_direct", &norm_backward_direct<false>);
}
