"""The backend of kernels that this machine's tests of the integrations name: they must be seen to run ours."""

from __future__ import annotations

from importlib import metadata

import pytest

from rows import DEVICE
from undivided.dispatch import AttentionCall
from undivided.rules import CUDA_MISSING, EXTENSION_MISSING, INTERPRETING, TRITON_MISSING, on_hopper


def version(package: str) -> tuple[int, ...]:
    """Its first two numbers."""
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


CPU = DEVICE.type == "cpu" and EXTENSION_MISSING is None
TRITON = TRITON_MISSING is None and (DEVICE.type == "cuda" or INTERPRETING)
CUDA = CUDA_MISSING is None and on_hopper(AttentionCall("cuda", "bfloat16", 1, 1, 1, 1, 1, 64, 64)) is None
KERNEL = "cpu" if CPU else "triton"
needs_kernels = pytest.mark.skipif(not (CPU or TRITON), reason="needs the compiled extension, or Triton")
needs_cpu = pytest.mark.skipif(not CPU, reason="needs the compiled extension and a CPU")
needs_triton = pytest.mark.skipif(not TRITON, reason="needs Triton, and its interpreter or a GPU")
# Triton's interpreter before 3.7 breaks with numpy 2.4 (triton-lang/triton issue 9171).
BROKEN = TRITON_MISSING is None and version("triton") < (3, 7) and version("numpy") >= (2, 4)
needs_interpreter = pytest.mark.skipif(BROKEN, reason="Triton's interpreter before 3.7 does not run with numpy 2.4")
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs the compiled CUDA kernels and a Hopper GPU")
