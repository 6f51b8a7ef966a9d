"""Decoding: one query a sequence against a long cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .attention_providers import heads_first
from .counts import attention_bytes, attention_operations
from .gate import compiled, ours, step
from .op import Absent, Function, Op, Provider, Runnable, Work


@dataclass(frozen=True)
class Case:
    """One query for each of `batch` sequences, caches of `cache` keys, all of them valid."""

    batch: int
    cache: int
    nheads: int
    nheads_kv: int
    head_dim: int
    dtype: str

    @property
    def size(self) -> float:
        return float(self.cache)

    @property
    def group(self) -> str:
        return f"{'grouped heads ' if self.nheads != self.nheads_kv else ''}{self.dtype}"

    @property
    def name(self) -> str:
        return f"b{self.batch} {self.cache} keys h{self.nheads}/{self.nheads_kv} d{self.head_dim} {self.group}"


def cases(quick: bool, device: str) -> list[Case]:
    """Batch 1 to 8, caches of 512 to 4096 keys (more on a GPU), heads with keys of their own, and grouped 32/4."""
    batches, caches = ((1, 64), (4096, 32768)) if device == "cuda" else ((1, 8), (512, 2048, 4096))
    rows = []
    for dtype in ("float32", "bfloat16"):
        for nheads, nheads_kv, head_dim in ((8, 8, 64), (32, 4, 128)):
            for batch in (1,) if quick else batches:
                for cache in (512,) if quick else caches:
                    rows.append(Case(batch, cache, nheads, nheads_kv, head_dim, dtype))
    return rows


def work(case: Case, mode: str) -> Work:
    size = getattr(torch, case.dtype).itemsize
    sizes = (1, case.cache, case.head_dim)
    return Work(
        attention_operations(case.batch, case.nheads, *sizes, False, mode),
        attention_bytes(case.batch, case.nheads, case.nheads_kv, *sizes, size, mode),
        items=case.batch,
    )


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """q (batch, 1, nheads, head_dim), k and v (batch, cache, nheads_kv, head_dim); random normal."""
    generator = torch.Generator().manual_seed(0)
    shapes = dict(q=(case.batch, 1, case.nheads, case.head_dim))
    shapes |= {name: (case.batch, case.cache, case.nheads_kv, case.head_dim) for name in ("k", "v")}
    dtype = getattr(torch, case.dtype)
    return {name: torch.randn(*shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}


def own(case: Case, device: str, backend: str) -> Function:
    from undivided import attention_decode

    lengths = torch.full((case.batch,), case.cache, dtype=torch.int32, device=device)
    return lambda q, k, v: attention_decode(q, k, v, lengths, backend=backend)


def sdpa(case: Case, device: str) -> Function:
    return lambda q, k, v: heads_first(q, k, v, case)


def matmuls(case: Case, device: str) -> Function:
    """Two batched products and a softmax: on a CPU faster than torch's fused kernel."""
    group = case.nheads // case.nheads_kv

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = (q * case.head_dim**-0.5).view(case.batch, case.nheads_kv, group, case.head_dim)
        weights = torch.softmax(q @ k.permute(0, 2, 3, 1), -1)
        return (weights @ v.transpose(1, 2)).view(case.batch, 1, case.nheads, case.head_dim)

    return function


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    version = torch.__version__
    return [
        *ours(own, backends),
        Provider("torch sdpa", version, sdpa),
        Provider("torch matmul", version, matmuls),
        Provider("torch.compile", version, compiled(matmuls), compiles=True),
    ]


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, inputs(case, device), (), mode)


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result, and that of matmul, softmax, matmul in the case's dtype."""
    from undivided import reference
    from undivided.testing import honest

    values = inputs(case, device)
    exact: Any = reference.attention(*(values[name].double() for name in "qkv"))
    return [exact], [honest.attention(*(values[name] for name in "qkv"))[0]]


ATTENTION_DECODE = Op(
    "attention_decode", cases, lambda case: ("forward",), providers, build, expected, work, axis="keys in the cache"
)
