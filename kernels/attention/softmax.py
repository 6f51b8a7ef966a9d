"""The running softmax: one step over a tile of scores, its product with the values, and its end.

A row is kept as its largest score `top`, the sum `total` of its probabilities relative to it, and `acc`, the sum of the
values so weighed (Dao et al. 2022, section 3.1). Scores and `top` are times log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import LOG2E, finite


@triton.jit
def step(s, top, total):
    """(probabilities [M, N] of the scores s, what the older sums shrink by [M], new top, new total)."""
    new = tl.maximum(top, tl.max(s, 1))
    base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(top - base)
    return p, shrink, new, total * shrink + tl.sum(p, 1)


@triton.jit
def weigh(p, v, seen, acc, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """acc + p v [M, DV]; a NaN or infinity in v reaches only the rows that see it."""
    if MASKED:
        clean = finite(v)
        acc = tl.dot(p.to(v.dtype), clean, acc, input_precision=PRECISION)
        bad = (tl.abs(v.to(tl.float32)) < float("inf")) == 0
        if tl.max(tl.max(bad.to(tl.int32), 1), 0) > 0:
            touched = tl.dot(seen.to(tl.float16), bad.to(tl.float16))
            acc = tl.where(touched > 0, float("nan"), acc)
        return acc
    else:
        return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit
def finish(acc, top, total, outside, sink, HAS_SINKS: tl.constexpr):
    """(out [M, DV], lse [M], natural); 0 and -inf for a row that saw nothing or lies `outside`.

    sink: the logit, a number or [M], that joins the denominator alone.
    """
    empty = (total == 0.0) | outside
    if HAS_SINKS:
        sink = sink * LOG2E
        new = tl.maximum(top, sink)
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.exp2(sink - new)
        acc = acc * shrink[:, None]
        top = new
    safe = tl.where(empty, 1.0, total)
    acc = tl.where(empty[:, None], 0.0, acc / safe[:, None])
    return acc, tl.where(empty, float("-inf"), (top + tl.log2(safe)) / LOG2E)
