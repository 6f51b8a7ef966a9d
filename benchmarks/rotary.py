"""Rotary positions of queries or keys: cases and providers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .gate import compiled, ours, split, step
from .op import OVERHEAD, Absent, Function, Op, Provider, Runnable, Work


@dataclass(frozen=True)
class Case:
    """x (batch, seqlen, nheads, head_dim) of dtype; every row at positions 0, 1, 2, ..."""

    batch: int
    seqlen: int
    nheads: int
    head_dim: int
    dtype: str

    @property
    def size(self) -> float:
        return float(self.seqlen)

    @property
    def group(self) -> str:
        return f"{OVERHEAD} {self.dtype}" if self.batch * self.seqlen == 1 else self.dtype

    @property
    def name(self) -> str:
        return f"b{self.batch} s{self.seqlen} h{self.nheads} d{self.head_dim} {self.group}"


def cases(quick: bool, device: str) -> list[Case]:
    """On a CPU outputs of at most 16 MiB, so that page faults are not what is timed. One token, for the overhead.

    Quick: a batch that stays in the second-level caches, where other programs do not change what is measured.
    """
    shapes = ((8, 128, 8, 64),) if quick else ((32, 128, 8, 64), (8, 512, 8, 64), (2, 2048, 8, 128))
    if device == "cuda":
        shapes = ((32, 512, 16, 64),) if quick else ((32, 512, 16, 64), (8, 2048, 16, 128))
    dtypes = ("bfloat16",) if quick else ("float32", "bfloat16")
    rows = [Case(*shape, dtype) for dtype in dtypes for shape in shapes]
    return rows if quick else [*rows, Case(1, 1, 8, 64, "float32")]


def work(case: Case, mode: str) -> Work:
    """x is read and y written, six operations a pair; a gradient is the same again."""
    elements = case.batch * case.seqlen * case.nheads * case.head_dim
    return Work(3.0 * elements, 2.0 * elements * getattr(torch, case.dtype).itemsize)


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """x and the gradient of y; random normal."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.seqlen, case.nheads, case.head_dim)
    dtype = getattr(torch, case.dtype)
    return {name: torch.randn(shape, generator=generator).to(device, dtype) for name in ("x", "dy")}


def tables(case: Case, device: str) -> tuple[Tensor, Tensor]:
    from undivided import reference

    return reference.rotary_tables(case.seqlen, case.head_dim, device=device)


def eager(case: Case, device: str) -> Function:
    """What a user of plain torch writes: in the dtype of x, the tables too."""
    cos, sin = (table[:, None].to(getattr(torch, case.dtype)) for table in tables(case, device))

    def turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    return turn


def own(case: Case, device: str, backend: str) -> Function:
    import undivided

    cos, sin = tables(case, device)
    return lambda x: undivided.rotary(x, cos, sin, backend=backend)


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    return [
        *ours(own, backends),
        Provider("torch eager", torch.__version__, eager),
        Provider("torch.compile", torch.__version__, compiled(eager), compiles=True),
    ]


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, *split(inputs(case, device), ("dy",)), mode)


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result and plain torch's in the case's dtype."""
    from undivided import reference

    values, grads = split({name: value.double() for name, value in inputs(case, device).items()}, ("dy",))
    cos, sin = tables(case, device)
    exact = step(lambda x: reference.rotary(x, cos, sin), values, grads, mode)()
    return list(exact), list(build(eager(case, device), case, mode, device)())


ROTARY = Op(
    "rotary", cases, lambda case: ("forward", "backward"), providers, build, expected, work, axis="seqlen", queued=True
)  # fmt: skip
