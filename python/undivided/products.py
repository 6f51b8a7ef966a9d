"""x w^T (+ bias) by whichever of torch's two libraries is faster on a CPU.

torch's matmul calls MKL for float32; oneDNN, which torch has as well, is faster with large weights: measured on two
threads of Zen 4, 512 x 512 weights 1.1 times from 64 rows on, 512 x 2048 1.05 to 1.6 times with any number of rows, an
output layer of 32,000 symbols 2 to 3 times with 1 to 64 rows; small weights lose by being laid out anew. It sums in
fewer accumulators: its largest error is 2 to 4 times MKL's, that of a float32 sum in the plain order.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 64  # with fewer a weight must be LARGE
MEDIUM, LARGE = 2**18, 2**20  # elements of the weight from which oneDNN wins


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = _onednn()


def by_onednn(x: Tensor, w: Tensor) -> bool:
    """Whether oneDNN is the faster for x (..., k) and w (n, k)."""
    size = w.numel()
    if not ONEDNN or size < MEDIUM or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return size >= LARGE or x.numel() >= ROWS * w.shape[1]


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (rows, k), w (n, k), bias (n,) or None -> (rows, n); any strides of w, no gradient."""
    if by_onednn(x, w):
        return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return x @ w.T if bias is None else torch.addmm(bias, x, w.T)
