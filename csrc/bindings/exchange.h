// Tensors read without torch's headers: by DLPack's exchange (dmlc/dlpack 1.3, `DLPackExchangeAPI`), a table of C
// functions that torch has from 2.10 on. Reading one takes some 20 nanoseconds; from Python its shape, strides and
// address take 500.
//
// For calls that go past the checks in Python: such a binding says false where anything is not as the kernel needs it,
// and the long way, which has the words for it, is taken.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace undivided {

// DLPack's `DLTensor`. What it points to lives as long as the tensor.
struct TensorView {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t dims;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  const int64_t *shape, *strides;
  uint64_t byte_offset;

  int kernel_dtype() const;  // a code of dtype.h, or -1
  bool is_int32() const;
  bool is_int64() const;
  bool same_shape(const TensorView& other) const;
  bool contiguous() const;
  bool expanded() const;  // several indices share a place in memory
};

// Whether `object` is a Tensor or Parameter, no subclass, on the CPU, and not empty.
bool view_of(pybind11::handle object, TensorView& view);

// Whether `object` is a float, and finite.
bool number_of(pybind11::handle object, double& number);

}  // namespace undivided
