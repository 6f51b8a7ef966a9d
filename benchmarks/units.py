"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def seconds(value: float) -> str:
    """
    >>> seconds(0.0000123)
    '12.3 us'
    """
    if not math.isfinite(value):
        return "-"
    for factor, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s")):
        if value * factor < 1000:
            return f"{three(value * factor)} {unit}"
    return f"{value:.0f} s"


def size(value: float) -> str:
    """
    >>> size(3 * 2**20)
    '3.00 MiB'
    """
    if not math.isfinite(value):
        return "-"
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{three(value / factor)} {unit}"
    return f"{value:.0f} B"


def rate(operations: float, moved: float, taken: float, ceiling: str) -> str:
    """Operations or bytes a second, whichever the ceiling of the row is about."""
    if not math.isfinite(taken):
        return "-"
    if ceiling == "matmul":
        return f"{three(operations / taken / 1e9)} GFLOP/s" if operations < 1e12 * taken else _tera(operations / taken)
    return f"{three(moved / taken / 1e9)} GB/s"


def _tera(value: float) -> str:
    return f"{three(value / 1e12)} TFLOP/s"


def three(value: float) -> str:
    """Three figures, without an exponent."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def error(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "-"


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values)) if values else math.nan
