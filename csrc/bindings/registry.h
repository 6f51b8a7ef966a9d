// Each file in bindings/ adds its functions to the module by itself:
//
//   UNDIVIDED_BINDINGS(layer_norm, module) { module.def("layer_norm_forward", ...); }
//
// Functions take addresses of tensor data as integers, sizes, strides and codes of dtypes; checks are made in Python.
// Those of *_direct.cpp take tensors and look at them themselves (exchange.h).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace undivided {

using Define = void (*)(pybind11::module_&);

// A node of the list of everything to define; lives as long as the program.
struct Binding {
  explicit Binding(Define define);
  Define define;
  const Binding* next;
};

template <class T>
inline T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Other Python threads run while the kernel does.
template <class Call>
void without_lock(void (*function)(const Call&), const Call& call) {
  pybind11::gil_scoped_release release;
  function(call);
}

}  // namespace undivided

#define UNDIVIDED_BINDINGS(name, module)                               \
  static void define_##name(pybind11::module_& module);                \
  static const ::undivided::Binding binding_of_##name(define_##name);  \
  static void define_##name(pybind11::module_& module)
