"""x w^T (+ bias) on a CPU, by whichever of torch's two libraries is faster.

torch's matmul calls MKL for float32; oneDNN, which torch has as well, reaches 90 % instead of 78 % of an AMD
processor's peak from some 64 rows on (Zen 4; 512 to 4096 columns: 1.06 to 1.16 times as fast). It sums in fewer
accumulators: its largest error is 2 to 4 times MKL's, that of a float32 sum in the plain order.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 64  # below, the libraries are equal, or oneDNN loses by laying the weight out anew


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = _onednn()


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (rows, k), w (n, k), bias (n,) or None -> (rows, n); any strides of w, no gradient."""
    if ONEDNN and x.dtype == torch.float32 and x.shape[0] >= ROWS:
        return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return x @ w.T if bias is None else torch.addmm(bias, x, w.T)
