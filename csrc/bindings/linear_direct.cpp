// The linear map of a few rows, and the feed-forward network of as many, straight from an op's arguments: true where it
// ran, false where a check in Python must look.
#include <memory>

#include "../cpu/dtype.h"
#include "../cpu/feed_forward.h"
#include "../cpu/linear.h"

#include "exchange.h"
#include "registry.h"

namespace {

using namespace undivided;

// x (..., columns), w (outputs, columns), bias (outputs,) or None; without y, which is to be filled.
bool linear_of(const TensorView& x, pybind11::handle w, pybind11::handle bias, Linear& call) {
  TensorView weight, added;
  const int dtype = x.kernel_dtype();
  if (!view_of(w, weight) || weight.kernel_dtype() != dtype || weight.dims != 2 || weight.strides[1] != 1) return false;
  call.columns = weight.shape[1];
  call.outputs = weight.shape[0];
  call.rows = 1;
  for (int i = 0; i + 1 < x.dims; ++i) call.rows *= x.shape[i];
  if (x.shape[x.dims - 1] != call.columns || call.rows > kMostLinearRows) return false;
  if (!bias.is_none()) {
    if (!view_of(bias, added) || added.kernel_dtype() != dtype || added.dims != 1) return false;
    if (added.shape[0] != call.outputs || !added.contiguous()) return false;
    call.bias = added.data;
  }
  call.x = x.data;
  call.w = weight.data;
  call.w_row = weight.strides[0];
  call.dtype = dtype;
  return true;
}

bool rows_of(pybind11::handle object, TensorView& view) {
  return view_of(object, view) && view.dims >= 2 && view.kernel_dtype() >= 0 && view.contiguous();
}

// y (..., outputs).
bool linear_direct(pybind11::handle x, pybind11::handle w, pybind11::handle bias, pybind11::handle y, int threads) {
  TensorView rows, result;
  Linear call{};
  if (!rows_of(x, rows) || !linear_of(rows, w, bias, call)) return false;
  if (!rows_of(y, result) || result.kernel_dtype() != call.dtype || result.dims != rows.dims) return false;
  for (int i = 0; i + 1 < rows.dims; ++i) {
    if (result.shape[i] != rows.shape[i]) return false;
  }
  if (result.shape[rows.dims - 1] != call.outputs) return false;
  call.y = result.data;
  call.threads = threads;
  without_lock(UNDIVIDED_PICK(linear), call);
  return true;
}

struct Network {
  Linear in, gate, out;
  FeedForwardForward between;
};

void run(const Network& network) {
  UNDIVIDED_PICK(linear)(network.in);
  if (network.between.gate != nullptr) UNDIVIDED_PICK(linear)(network.gate);
  UNDIVIDED_PICK(feed_forward_forward)(network.between);
  UNDIVIDED_PICK(linear)(network.out);
}

// y like x. In float32 the pass between the products adds the bias, in 16 bits the first product before it rounds: as
// the launcher does.
bool feed_forward_direct(pybind11::handle x, pybind11::handle w_in, pybind11::handle b_in, pybind11::handle w_out,
                         pybind11::handle b_out, int activation, pybind11::handle w_gate, pybind11::handle y,
                         int threads) {
  TensorView rows, result;
  Network network{};
  if (!rows_of(x, rows) || !linear_of(rows, w_in, b_in, network.in)) return false;
  const bool gated = !w_gate.is_none();
  if (gated && !linear_of(rows, w_gate, pybind11::none(), network.gate)) return false;
  if (gated && network.gate.outputs != network.in.outputs) return false;
  const int64_t count = network.in.rows * network.in.outputs;
  if (!rows_of(y, result) || result.kernel_dtype() != rows.kernel_dtype() || !result.same_shape(rows)) return false;
  const int64_t hidden_shape[] = {network.in.rows, network.in.outputs};
  TensorView hidden = rows;
  hidden.dims = 2;
  hidden.shape = hidden_shape;
  if (!linear_of(hidden, w_out, b_out, network.out) || network.out.outputs != network.in.columns) return false;
  const int64_t bytes = count * size_of(network.in.dtype);
  const std::unique_ptr<char[]> memory(new char[bytes * (gated ? 2 : 1)]);
  FeedForwardForward& between = network.between;
  if (network.in.dtype == kFloat32) std::swap(between.bias, network.in.bias);
  network.in.y = between.a = memory.get();
  between.h = memory.get();
  network.out.x = memory.get();
  if (gated) between.gate = network.gate.y = memory.get() + bytes;
  between.rows = network.in.rows;
  between.columns = network.in.outputs;
  between.dtype = network.in.dtype;
  between.activation = activation;
  network.out.y = result.data;
  network.in.threads = network.gate.threads = network.out.threads = between.threads = threads;
  without_lock(&run, network);
  return true;
}

}  // namespace

UNDIVIDED_BINDINGS(linear_direct, module) {
  module.def("linear_direct", &linear_direct);
  module.def("feed_forward_direct", &feed_forward_direct);
}
