"""The linear map of a few rows on a CPU: launcher over `undivided._C`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from . import DTYPES, address

MOST_ROWS = 16  # at a time, of csrc/cpu/linear.h


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., k), w (n, k), rows contiguous, bias (n,) or None -> (..., n), of one dtype.

    More than MOST_ROWS rows are taken in parts.
    """
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    *shape, columns = x.shape
    outputs = w.shape[0]
    y = x.new_empty(*shape, outputs)
    _C.linear(
        address(x),
        address(w),
        address(bias),
        y.data_ptr(),
        x.numel() // columns,
        columns,
        outputs,
        w.stride(0),
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y
