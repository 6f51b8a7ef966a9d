"""Launchers of the C++ kernels in `undivided._C`: they allocate with torch and pass addresses, sizes and strides.

Importing this module connects the extension to PyTorch's OpenMP threads and applies `UNDIVIDED_CPU_VARIANT`.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from .. import _C
from ..environment import cpu_variant

CPU = torch.device("cpu")  # what torch.set_default_device says is not for the launchers
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the codes of csrc/cpu/dtype.h


def _openmp_address() -> int:
    """The address of the GOMP_parallel that torch itself calls; 0 when there is none.

    A look-up through libtorch_cpu searches the libraries that it was linked with, so it finds the right one where
    a process has loaded several. RTLD_NOLOAD: only what is there already, nothing is loaded anew.
    """
    no_load = getattr(os, "RTLD_NOLOAD", None)
    if no_load is None:
        return 0
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library), mode=no_load | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(found, ctypes.c_void_p).value or 0


def address(tensor: torch.Tensor | None) -> int:
    """The address of a tensor's data; 0 for None. Raises: ValueError where there is no data."""
    if tensor is None:
        return 0
    found: int = tensor.data_ptr()
    if not found and tensor.numel():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no memory: its storage was freed, or never made")
    return found


def _connect() -> None:
    _C.set_openmp(_openmp_address())
    variant = cpu_variant()
    if variant is not None:
        _C.set_variant(variant)


_connect()

# Whether bindings can look at tensors themselves (csrc/bindings/exchange.h): torch has what it takes from 2.10 on.
READS_TENSORS: bool = _C.set_exchange(
    getattr(torch.Tensor, "__dlpack_c_exchange_api__", None), torch.Tensor, torch.nn.Parameter
)
