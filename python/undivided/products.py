"""x w^T (+ bias) on a CPU, by the fastest of what there is.

With up to 16 rows a product is bound by reading the weight: the kernel in `csrc/cpu/linear.cpp` reads it as fast as
memory gives it. Measured on two threads of Zen 4, 512 x 512 to 768 x 3072 weights: 1.5 to 6 times as fast as MKL in
float32, 1.3 to 4.5 times as oneDNN in bfloat16; an output layer of 32,000 symbols 2.5 to 4.7 and 1.2 to 1.8 times.
On Emerald Rapids, whose MKL reads one to three rows as fast: 0.9 to 1.2 times in float32 where the weight is not in the
second-level cache (0.6 to 1.1 where it is), 1.2 to 2 times from four rows on, and 1.7 to 3.7 times in bfloat16.

With more, torch's matmul calls MKL for float32; on a processor that is not Intel's oneDNN, which torch has as well,
is faster with large weights: 1.1 times with 512 x 512 from 64 rows on, up to 1.6 times with larger ones; small weights
lose by being laid out anew. It sums in fewer accumulators: its largest error is 2 to 4 times MKL's, that of a float32
sum in the plain order. Where vectors of 16 floats have the rate of those of 8, to which MKL keeps, as on Zen 5, oneDNN
is 1.6 to 2.3 times as fast, with small weights too. The gradient of a weight is a product of transposes, and oneDNN
copies the first of them: that is the smaller one, and the product then transposed.

For bfloat16 torch calls oneDNN itself, but copies the bias into the result before it multiplies; oneDNN adds it as it
rounds. Measured on two threads of Zen 5, 64 x 64 to 32,000 x 512 weights, 17 to 2,048 rows: 1.02 to 1.3 times as fast.

Without tiles (AMX) or fast dot products oneDNN's bfloat16 is slower than MKL's float32: there the matrices are widened,
multiplied and the product rounded once. Measured on two threads of Emerald Rapids without AMX: 1.2 times as fast with
128 rows and a 512 x 512 weight, 1.4 to 1.8 times with more, 1.5 with an output layer of 32,000 symbols; in parts, since
where a float32 copy is so large that the allocator asks the system for it anew each time it was 1.0 to 1.4.

The bits of a row depend on the number of rows with the libraries, not with our kernel: batch_invariant takes it always.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .invariance import invariant

FEW = 16  # rows
ROWS = 64  # with fewer a weight must be LARGE for oneDNN
MEDIUM, LARGE = 2**18, 2**20  # elements of the weight from which oneDNN wins
HALF_RATE = 2**21, 2**23  # products of two numbers from which oneDNN wins where MKL runs at half rate; with a copy
WORTH_WIDENING = 80.0  # operations for each element that is converted, from which they win
MOST_WIDENED = 2**22  # elements of a float32 copy: 16 MiB. Of over 32 MiB glibc asks the system for new pages each time
FEWEST_WIDENED = 256  # rows at a time, or outputs, that the limit must leave
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


_by_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
ONEDNN = _by_onednn is not None
ONEDNN_BFLOAT16: bool = ONEDNN and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()


class Processor(NamedTuple):
    """What is known of this one; by default everything is left to torch."""

    is_intel: bool = True
    halves_mkl: bool = False  # MKL leaves half of its float32 products unused
    fast_bfloat16: bool = True  # in libraries


@lru_cache(maxsize=1)
def _processor() -> Processor:
    try:
        from . import _C
    except ImportError:
        return Processor()
    return Processor(_C.made_by_intel(), _C.mkl_runs_at_half_rate(), _C.bfloat16_products_are_fast())


Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@lru_cache(maxsize=1)
def few_rows() -> Kernel | None:
    """The kernel for a few rows; None where the extension is not built."""
    try:
        from .cpu.linear import linear
    except ImportError:
        return None
    return linear


def for_few_rows(x: Tensor, w: Tensor) -> Kernel | None:
    """Our kernel where it takes x (..., k) and w (n, k), of one dtype."""
    columns = w.shape[1]
    rows = x.numel() // columns if columns else 0
    taken = (
        rows > 0
        and (rows <= FEW or invariant())
        and x.is_cpu
        and x.dtype in FLOATS
        and w.stride(1) == 1
        and w.shape[0] > 0
    )
    return few_rows() if taken else None


def by_onednn(x: Tensor, w: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a call of oneDNN is faster than torch's matmul for x (..., k), w (n, k) and bias (n,)."""
    if not ONEDNN or x.device.type != "cpu":
        return False
    if x.dtype == torch.bfloat16:
        return ONEDNN_BFLOAT16 and bias is not None and min(x.numel(), w.numel()) > 0
    if x.dtype != torch.float32 or _processor().is_intel:
        return False
    size = w.numel()
    if _processor().halves_mkl:
        return x.numel() * w.shape[0] >= HALF_RATE[_is_transposed(x)]
    return size >= LARGE or (size >= MEDIUM and x.numel() >= ROWS * w.shape[1])


def _is_transposed(x: Tensor) -> bool:
    return x.dim() == 2 and x.stride(0) == 1 and x.stride(1) > 1


def onednn_product(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """`product` by oneDNN."""
    (rows, columns), outputs = x.shape, w.shape[0]
    if bias is None and _is_transposed(x) and _is_transposed(w) and rows * columns > outputs * (rows + columns):
        return _by_onednn(w, x, None, "none", [], "").T.contiguous()
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    return _by_onednn(x, w, bias, "none", [], "")


def by_widening(x: Tensor, w: Tensor, dtype: torch.dtype) -> bool:
    """Whether x (..., k) and w (n, k) are multiplied faster in float32 than in `dtype`. That depends on the number
    of rows, so batch_invariant has none of it."""
    if dtype != torch.bfloat16 or x.device.type != "cpu" or _processor().fast_bfloat16 or invariant():
        return False
    outputs, columns = w.shape
    if columns > MOST_WIDENED // FEWEST_WIDENED:
        return False
    rows = x.numel() // columns if columns else 0
    converted = rows * (outputs + columns) + outputs * columns
    return rows * outputs * columns >= WORTH_WIDENING * converted > 0


def widened(x: Tensor, w: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """product of tensors of any dtypes, in float32 also under autocast, and rounded once, to `dtype`."""
    (rows, columns), outputs = x.shape, w.shape[0]
    tall = min(rows, MOST_WIDENED // max(columns, 1))
    wide = min(outputs, MOST_WIDENED // max(columns, tall, 1))
    bias = None if bias is None else bias.float()
    with torch.autocast(x.device.type, enabled=False):
        if tall == rows and wide == outputs:
            return product(x.float(), w.float(), bias).to(dtype)
        out = x.new_empty(rows, outputs, dtype=dtype)
        for top in range(0, rows, tall):
            part = x[top : top + tall].float()
            for left in range(0, outputs, wide):
                here = slice(left, left + wide)
                out[top : top + tall, here] = product(part, w[here].float(), None if bias is None else bias[here])
        return out


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (rows, k), w (n, k), bias (n,) or None, of one dtype -> (rows, n); any strides, no gradient. Where for_few_rows
    takes it x may be (..., k)."""
    few = for_few_rows(x, w)
    if few is not None:
        return few(x, w, bias)
    if by_widening(x, w, x.dtype):
        return widened(x, w, bias, x.dtype)
    if by_onednn(x, w, bias):
        return onednn_product(x, w, bias)
    return x @ w.T if bias is None else torch.addmm(bias, x, w.T)
