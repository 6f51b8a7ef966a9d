"""Layer norm, RMS norm, and both with a residual add: cases and providers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import norm_bytes
from .gate import budget_of, step
from .runner import Provider, Work


@dataclass(frozen=True)
class Case:
    """(rows, columns) of dtype; op is layer_norm or rms_norm."""

    op: str
    rows: int
    columns: int
    dtype: str
    residual: bool = False

    @property
    def name(self) -> str:
        return f"{self.op} {self.rows}x{self.columns} {self.dtype}{' +residual' if self.residual else ''}"


def cases(quick: bool) -> list[Case]:
    """512 to 4096 columns; outputs of at most 16 MiB, so that page faults of fresh memory are not what is timed."""
    shapes = ((2048, 512),) if quick else ((2048, 512), (4096, 1024), (1024, 4096))
    return [
        Case(op, rows, columns, dtype, residual)
        for op in ("layer_norm", "rms_norm")
        for residual in (False, True)
        for dtype in ("float32", "bfloat16")
        for rows, columns in shapes
    ]


def work(case: Case, mode: str) -> Work:
    size = getattr(torch, case.dtype).itemsize
    return Work(0.0, norm_bytes(case.rows, case.columns, size, case.residual, mode))


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """x, weight, bias, residual and the gradients of the outputs; random normal."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    values = dict(x=draw(case.rows, case.columns), weight=draw(case.columns), dy=draw(case.rows, case.columns))
    if case.op == "layer_norm":
        values["bias"] = draw(case.columns)
    if case.residual:
        values |= dict(residual=draw(case.rows, case.columns), dsummed=draw(case.rows, case.columns))
    return values


def torch_norm(op: str) -> Callable[..., Any]:
    """What a user of plain torch writes."""

    def layer(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Any:
        x = x if residual is None else x + residual
        y = F.layer_norm(x, x.shape[-1:], weight, bias)
        return y if residual is None else (y, x)

    def rms(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Any:
        x = x if residual is None else x + residual
        y = F.rms_norm(x, x.shape[-1:], weight, eps=1e-6)
        return y if residual is None else (y, x)

    return layer if op == "layer_norm" else rms


def providers(device: str) -> list[Provider]:
    import undivided

    def ours(backend: str) -> Provider:
        def prepare(case: Case, mode: str) -> Callable[[], Sequence[Tensor]]:
            function = getattr(undivided, case.op)
            return build(case, mode, lambda **values: function(**values, backend=backend), device)

        return Provider(f"undivided {backend}", undivided.__version__, prepare, ours=True)

    def eager(case: Case, mode: str) -> Callable[[], Sequence[Tensor]]:
        return build(case, mode, torch_norm(case.op), device)

    def compiled(case: Case, mode: str) -> Callable[[], Sequence[Tensor]]:
        torch.compiler.reset()
        return build(case, mode, torch.compile(torch_norm(case.op), dynamic=False), device)

    return [
        ours("triton" if device == "cuda" else "cpu"),
        Provider("torch eager", torch.__version__, eager),
        Provider("torch.compile", torch.__version__, compiled),
    ]


def build(case: Case, mode: str, function: Callable[..., Any], device: str) -> Callable[[], Sequence[Tensor]]:
    values = dict(inputs(case, device))
    grads = tuple(values.pop(name) for name in ("dy", "dsummed") if name in values)
    return step(function, values, grads, mode)


@lru_cache(maxsize=8)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result and plain torch's in the case's dtype."""
    from undivided import reference

    values = {name: value.double() for name, value in inputs(case, device).items()}
    grads = tuple(values.pop(name) for name in ("dy", "dsummed") if name in values)
    definition = getattr(reference, case.op)
    exact = step(definition, values, grads, mode)()
    return list(exact), list(build(case, mode, torch_norm(case.op), device)())


def gate(case: Case, mode: str, outputs: Sequence[Tensor], device: str) -> tuple[float, float]:
    return budget_of(outputs, *expected(case, mode, device))
