// The module undivided._C: what was built, which variant runs, which threads; the ops are in bindings/.
#include "bindings/registry.h"
#include "build_info.h"  // written by setup.py
#include "cpu/processor.h"
#include "cpu/threads.h"
#include "cpu/variant.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace undivided {
namespace {

// Constant-initialised, so it is there before any Binding registers itself, whatever the order of the files.
const Binding* first_binding = nullptr;

constexpr Variant kVariants[] = {Variant::portable, Variant::avx2, Variant::avx512, Variant::avx512_bf16,
                                 Variant::avx512_bf16_dots};

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (Variant variant : kVariants) {
    if (variant_available(variant)) names.emplace_back(variant_name(variant));
  }
  return names;
}

void choose_variant(const std::string& name) {
  if (set_variant(name.c_str())) return;
  std::string allowed;
  for (const std::string& each : variants()) allowed += (allowed.empty() ? "" : ", ") + each;
  throw pybind11::value_error("variant '" + name + "' does not run here; allowed: " + allowed);
}

}  // namespace

Binding::Binding(Define define) : define(define), next(first_binding) { first_binding = this; }

}  // namespace undivided

PYBIND11_MODULE(_C, module) {
  using namespace undivided;
  module.doc() = "Compiled kernels of undivided, over raw addresses; undivided.ops is the interface to them.";
  module.def(
      "build_info", [] { return pybind11::module_::import("json").attr("loads")(UNDIVIDED_BUILD_INFO); },
      "What was built, with which compilers, and why anything was left out.");
  module.def("variants", &variants, "Instruction-set variants of the CPU kernels that this processor can run.");
  module.def("variant", [] { return variant_name(current_variant()); }, "The variant that runs now.");
  module.def("set_variant", &choose_variant, pybind11::arg("name"), "Choose a variant; ValueError when it cannot run.");
  module.def("made_by_intel", &made_by_intel, "Whether the processor is one of Intel's.");
  module.def("mkl_runs_at_half_rate", &is_wide_and_not_intels,
             "Whether MKL leaves half of the processor's float32 products unused.");
  module.def("bfloat16_products_are_fast", &bfloat16_products_are_fast,
             "Whether libraries multiply bfloat16 faster than float32 on this processor.");
  module.def("set_openmp", [](uintptr_t address) { set_openmp(pointer<void>(address)); }, pybind11::arg("address"),
             "Run on the OpenMP threads whose GOMP_parallel is at this address; 0 for threads of our own.");
  module.def("thread_pool", &thread_pool_kind, "'openmp' or 'own'.");
  for (const Binding* each = first_binding; each != nullptr; each = each->next) each->define(module);
}
