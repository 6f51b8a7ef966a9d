"""The backend of kernels that this machine's tests of the integrations name: they must be seen to run ours."""

from __future__ import annotations

import pytest

from rows import DEVICE
from undivided.rules import EXTENSION_MISSING, INTERPRETING, TRITON_MISSING

CPU = DEVICE.type == "cpu" and EXTENSION_MISSING is None
TRITON = TRITON_MISSING is None and (DEVICE.type == "cuda" or INTERPRETING)
KERNEL = "cpu" if CPU else "triton"
needs_kernels = pytest.mark.skipif(not (CPU or TRITON), reason="needs the compiled extension, or Triton")
needs_cpu = pytest.mark.skipif(not CPU, reason="needs the compiled extension and a CPU")
