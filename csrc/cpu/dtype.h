// Codes of the element types that cross the binding; the same numbers as DTYPES in undivided/cpu/__init__.py.
#pragma once

namespace undivided {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int size_of(int dtype) { return dtype == kFloat32 ? 4 : 2; }

}  // namespace undivided
