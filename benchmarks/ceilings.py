"""What the machine can do at best, measured in the run that it is compared with: copies and a matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from undivided import products

from .clock import medians
from .machine import device_name
from .op import Work


@dataclass
class Ceilings:
    """Bytes a second of copies, by the bytes that they move, and operations a second of a matmul, by dtype.

    A copy counts what it reads and what it writes. There is one for each size because a small one stays in a cache,
    where more is possible than in memory.
    """

    kind: str  # "cpu" or "cuda"
    device: str
    copies: dict[int, float] = field(default_factory=dict)
    matmul: dict[str, float] = field(default_factory=dict)

    def copy(self, size: float) -> float:
        """Of the copy that moves about as many bytes: the first that moves at least half of `size`, or the largest."""
        sizes = sorted(self.copies)
        return self.copies[next((s for s in sizes if s >= size / 2), sizes[-1])]

    def floor(self, work: Work, dtype: str) -> tuple[float, str]:
        """The least seconds for `work`, and which ceiling says so."""
        by_bytes = work.bytes / self.copy(work.bytes)
        by_operations = work.operations / self.matmul[dtype]
        return (by_bytes, "copy") if by_bytes > by_operations else (by_operations, "matmul")


def measure_ceilings(kind: str, seconds: float | None = None) -> Ceilings:
    """Copies from 256 KiB to 128 MiB (to 2 GiB on a GPU) into warm memory, and matmuls of 1024^3 (8192^3 on a GPU) by
    the faster of torch's libraries."""
    ceilings = Ceilings(kind, device_name(kind))
    sizes = [2**power for power in ((22, 24, 26, 28, 31) if kind == "cuda" else (18, 20, 22, 24, 27))]
    functions: dict[str, Callable[[], Any]] = {}
    for size in sizes:
        source, target = (torch.ones(size // 2, dtype=torch.int8, device=kind) for _ in range(2))
        functions[f"copy {size}"] = partial(target.copy_, source)
    n = 8192 if kind == "cuda" else 1024
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(n, n, device=kind).to(getattr(torch, name)) for _ in range(2))
        out = torch.empty_like(a)
        functions[name] = partial(torch.mm, a, b, out=out)
        if kind == "cpu" and name == "float32" and products.ONEDNN:  # torch's matmul is MKL's
            functions[f"{name} by oneDNN"] = partial(products.onednn_product, a, b, None)
    found = medians(functions, kind, seconds or (0.3 if kind == "cuda" else 1.0))
    ceilings.copies = {size: size / found[f"copy {size}"] for size in sizes}
    for name in ("float32", "bfloat16"):
        ceilings.matmul[name] = 2 * n**3 / min(found[name], found.get(f"{name} by oneDNN", math.inf))
    return ceilings


def drift(before: Ceilings, after: Ceilings) -> float:
    """The largest factor between two measurements of the same ceiling: 1 on a machine at rest."""
    pairs = [(before.copies[size], after.copies[size]) for size in before.copies]
    pairs += [(before.matmul[name], after.matmul[name]) for name in before.matmul]
    return max(max(a, b) / min(a, b) for a, b in pairs)
