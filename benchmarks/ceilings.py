"""What the machine can do at best, measured in the run that it is compared with: a copy and a matrix product."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Ceilings:
    """Bytes a second of a copy (read and written, both counted) and operations a second of a matmul by dtype."""

    kind: str  # "cpu" or "cuda"
    device: str
    copy: float = 0.0
    matmul: dict[str, float] = field(default_factory=dict)

    def floor(self, work: Any, dtype: str) -> tuple[float, str]:
        """The least seconds for `work`, and which ceiling says so."""
        by_bytes = work.bytes / self.copy
        by_operations = work.operations / self.matmul[dtype]
        return (by_bytes, "copy") if by_bytes > by_operations else (by_operations, "matmul")


def device_name(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure_ceilings(kind: str, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Ceilings:
    """A 64 MiB copy into warm memory (16 GiB-class on a GPU: 1 GiB) and a 1024^3 (8192^3) matmul, medians."""
    ceilings = Ceilings(kind, device_name(kind))
    size = 2**30 if kind == "cuda" else 2**26
    source, target = (torch.ones(size, dtype=torch.int8, device=kind) for _ in range(2))
    ceilings.copy = 2 * size / _median(lambda: target.copy_(source), kind)
    n = 8192 if kind == "cuda" else 1024
    for name in dtypes:
        dtype = getattr(torch, name)
        a, b = (torch.randn(n, n, device=kind).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=kind)
        ceilings.matmul[name] = 2 * n**3 / _median(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), kind)
    return ceilings


def _median(function: Any, kind: str, repeats: int = 9) -> float:
    times = []
    for _ in range(repeats + 2):
        if kind == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if kind == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
