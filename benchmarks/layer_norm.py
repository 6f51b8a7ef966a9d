"""Layer norm, RMS norm, and both with a residual add: cases and providers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import norm_bytes
from .gate import compiled, drawn_on, ours, split, step
from .op import OVERHEAD, Absent, Function, Op, Provider, Runnable, Work
from .peers import norm_peers


@dataclass(frozen=True)
class Case:
    """(rows, columns) of dtype; op is layer_norm or rms_norm."""

    op: str
    rows: int
    columns: int
    dtype: str
    residual: bool = False

    @property
    def size(self) -> float:
        return float(self.columns)

    @property
    def group(self) -> str:
        if self.rows == 1:
            return f"{OVERHEAD} {self.dtype}"
        return f"residual add {self.dtype}" if self.residual else self.dtype

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns} {self.group}"


def cases(op: str, quick: bool, device: str) -> list[Case]:
    """512 to 4096 columns; on a CPU outputs of at most 16 MiB, so that page faults are not what is timed.

    One row of 8 columns, for the overhead of a call. Quick: rows that stay in the second-level caches, where other
    programs do not change what is measured.
    """
    shapes = ((512, 512),) if quick else ((2048, 512), (4096, 1024), (1024, 4096))
    if device == "cuda":
        return cuda_cases(op, quick)
    rows = [
        Case(op, count, columns, dtype, residual)
        for residual in (False, True)
        for dtype in ("float32", "bfloat16")
        for count, columns in shapes
    ]
    return [*rows, Case(op, 1, 8, "float32")]


ELEMENTS = 2**27  # of x on a GPU: 256 MiB of bfloat16, more than its caches hold


def cuda_cases(op: str, quick: bool) -> list[Case]:
    """bfloat16, 1024 to 16384 columns; then one residual add, float32 once, and the overhead of a call."""
    if quick:
        return [Case(op, ELEMENTS // 4096, 4096, "bfloat16"), Case(op, 1, 8, "float32")]
    rows = [Case(op, ELEMENTS // columns, columns, "bfloat16") for columns in (1024, 2048, 4096, 8192, 16384)]
    rows.append(Case(op, ELEMENTS // 4096, 4096, "bfloat16", residual=True))
    rows.append(Case(op, ELEMENTS // 2 // 4096, 4096, "float32"))
    return [*rows, Case(op, 1, 8, "float32")]


def compiled_where_it_counts(case: Case, device: str) -> Function:
    """On a GPU it compiles for seconds a shape."""
    if device == "cuda" and (case.dtype != "bfloat16" or case.rows == 1):
        raise NotImplementedError("left out on a GPU: it is timed in bfloat16")
    return compiled(eager)(case, device)


def modes(case: Case) -> Sequence[str]:
    return ("forward_backward",) if case.residual else ("forward", "backward")


def work(case: Case, mode: str) -> Work:
    size = getattr(torch, case.dtype).itemsize
    return Work(0.0, norm_bytes(case.rows, case.columns, size, case.residual, mode))


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """x, weight, bias, residual and the gradients of the outputs; random normal."""
    draw = drawn_on(device, getattr(torch, case.dtype))
    values = dict(x=draw(case.rows, case.columns), weight=draw(case.columns), dy=draw(case.rows, case.columns))
    if case.op == "layer_norm":
        values["bias"] = draw(case.columns)
    if case.residual:
        values |= dict(residual=draw(case.rows, case.columns), dsummed=draw(case.rows, case.columns))
    return values


def eager(case: Case, device: str) -> Function:
    """What a user of plain torch writes."""

    def layer(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Any:
        x = x if residual is None else x + residual
        y = F.layer_norm(x, x.shape[-1:], weight, bias)
        return y if residual is None else (y, x)

    def rms(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Any:
        x = x if residual is None else x + residual
        y = F.rms_norm(x, x.shape[-1:], weight, eps=1e-6)
        return y if residual is None else (y, x)

    return layer if case.op == "layer_norm" else rms


def own(case: Case, device: str, backend: str) -> Function:
    import undivided

    function = getattr(undivided, case.op)
    return lambda **values: function(**values, backend=backend)


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    return [
        *ours(own, backends),
        Provider("torch eager", torch.__version__, eager),
        Provider("torch.compile", torch.__version__, compiled_where_it_counts, compiles=True),
        *norm_peers(device),
    ]


def bytes_alone(case: Case, mode: str, device: str) -> Runnable | None:
    """On a CPU, as 32-bit words, since torch's ops compute longer with bfloat16 than these move it. One product stands
    for a backward of three matrices."""
    if device != "cpu" or case.rows == 1:
        return None
    words = {name: value.view(torch.int32) for name, value in inputs(case, device).items() if value.dim() == 2}
    x, dy, residual, dsummed = words["x"], words["dy"], words.get("residual"), words.get("dsummed")

    def forward() -> list[Tensor]:
        return [x.clone()] if residual is None else [torch.zeros_like(x), x + residual]

    def backward(normalised: Tensor) -> list[Tensor]:
        return [dy + normalised if dsummed is None else torch.addcmul(dy, dsummed, normalised)]

    def both() -> list[Tensor]:
        outputs = forward()
        return outputs + backward(x if residual is None else outputs[-1])

    return {"forward": forward, "backward": lambda: backward(x), "forward_backward": both}[mode]


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, *split(inputs(case, device), ("dy", "dsummed")), mode)


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result and plain torch's in the case's dtype."""
    from undivided import reference

    values, grads = split({name: value.double() for name, value in inputs(case, device).items()}, ("dy", "dsummed"))
    exact = step(getattr(reference, case.op), values, grads, mode)()
    return list(exact), list(build(eager(case, device), case, mode, device)())


def op(name: str) -> Op:
    return Op(
        name,
        lambda quick, device: cases(name, quick, device),
        modes,
        providers,
        build,
        expected,
        work,
        axis="columns",
        queued=True,
        bytes_alone=bytes_alone,
    )


LAYER_NORM, RMS_NORM = op("layer_norm"), op("rms_norm")
