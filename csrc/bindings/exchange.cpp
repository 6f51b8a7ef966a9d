#include "exchange.h"

#include <cmath>
#include <cstring>

#include "../cpu/dtype.h"
#include "registry.h"

namespace undivided {
namespace {

// The table, whose layout is that of major version 1; functions that are not called here are addresses.
struct ExchangeTable {
  struct {
    uint32_t major, minor;
  } version;
  const void* previous;
  const void *allocate, *managed_from_object, *managed_to_object;
  int (*view_from_object)(void* object, TensorView* view);  // 0, or -1 with a Python error
  const void* current_stream;
};

enum Code : uint8_t { kInteger = 0, kFloat = 2, kBrainFloat = 4 };
constexpr int32_t kCpu = 1;

const ExchangeTable* exchange = nullptr;
PyObject *tensor_type = nullptr, *parameter_type = nullptr;

// Whether torch's table is one that can be read; where not, every call takes the long way.
bool set_exchange(pybind11::handle capsule, pybind11::handle tensor, pybind11::handle parameter) {
  constexpr const char* kName = "dlpack_exchange_api";
  if (PyCapsule_IsValid(capsule.ptr(), kName) == 0) return false;
  const auto* table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), kName));
  if (table->version.major != 1 || table->view_from_object == nullptr) return false;
  tensor_type = tensor.inc_ref().ptr();
  parameter_type = parameter.inc_ref().ptr();
  exchange = table;
  return true;
}

}  // namespace

bool number_of(pybind11::handle object, double& number) {
  if (PyFloat_CheckExact(object.ptr()) == 0) return false;
  number = PyFloat_AS_DOUBLE(object.ptr());
  return std::isfinite(number);
}

bool view_of(pybind11::handle object, TensorView& view) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  if (exchange == nullptr || (type != tensor_type && type != parameter_type)) return false;
  if (exchange->view_from_object(object.ptr(), &view) != 0) {
    PyErr_Clear();
    return false;
  }
  if (view.device.type != kCpu || view.data == nullptr) return false;
  for (int i = 0; i < view.dims; ++i) {
    if (view.shape[i] == 0) return false;
  }
  view.data = static_cast<char*>(view.data) + view.byte_offset;
  return true;
}

int TensorView::kernel_dtype() const {
  if (dtype.lanes != 1) return -1;
  if (dtype.code == kFloat) return dtype.bits == 32 ? kFloat32 : dtype.bits == 16 ? kFloat16 : -1;
  return dtype.code == kBrainFloat && dtype.bits == 16 ? kBFloat16 : -1;
}

bool TensorView::is_int32() const { return dtype.code == kInteger && dtype.bits == 32 && dtype.lanes == 1; }

bool TensorView::is_int64() const { return dtype.code == kInteger && dtype.bits == 64 && dtype.lanes == 1; }

bool TensorView::same_shape(const TensorView& other) const {
  return dims == other.dims && std::memcmp(shape, other.shape, dims * sizeof(int64_t)) == 0;
}

bool TensorView::contiguous() const {
  int64_t expected = 1;
  for (int i = dims - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

bool TensorView::expanded() const {
  for (int i = 0; i < dims; ++i) {
    if (shape[i] > 1 && strides[i] == 0) return true;
  }
  return false;
}

}  // namespace undivided

UNDIVIDED_BINDINGS(exchange, module) { module.def("set_exchange", &undivided::set_exchange); }
