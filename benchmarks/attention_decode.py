"""Decoding: one query a sequence against a long cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from .attention_providers import heads_first, only, short
from .counts import attention_bytes, attention_operations
from .gate import compiled, drawn_on, ours, step
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
    """Batch 1 to 8, caches of 512 to 4096 keys, heads with keys of their own, and grouped 32/4."""
    if device == "cuda":
        return cuda_cases(quick)
    batches, caches = (1, 8), (512, 2048, 4096)
    rows = []
    for dtype in ("float32", "bfloat16"):
        for nheads, nheads_kv, head_dim in ((8, 8, 64), (32, 4, 128)):
            for batch in (1,) if quick else batches:
                for cache in (512,) if quick else caches:
                    rows.append(Case(batch, cache, nheads, nheads_kv, head_dim, dtype))
    return rows


LARGEST = 20e9  # bytes of a cache on a GPU


def cuda_cases(quick: bool) -> list[Case]:
    """bfloat16, batch 1 to 32, caches of 1024 to 65536 keys as long as they take less than LARGEST."""
    rows = []
    for nheads_kv in (4, 32):
        for batch in (8,) if quick else (1, 8, 32):
            for cache in (8192,) if quick else (1024, 8192, 65536):
                rows.append(Case(batch, cache, 32, nheads_kv, 128, "bfloat16"))
    rows = [case for case in rows if work(case, "forward").bytes < LARGEST]
    return rows if quick else [*rows, Case(8, 8192, 32, 4, 128, "float32")]


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
    shapes = dict(q=(case.batch, 1, case.nheads, case.head_dim))
    shapes |= {name: (case.batch, case.cache, case.nheads_kv, case.head_dim) for name in ("k", "v")}
    draw = drawn_on(device, getattr(torch, case.dtype))
    return {name: draw(*shape) for name, shape in shapes.items()}


def own(case: Case, device: str, backend: str) -> Function:
    from undivided import attention_decode

    lengths = torch.full((case.batch,), case.cache, dtype=torch.int32, device=device)
    return lambda q, k, v: attention_decode(q, k, v, lengths, backend=backend)


def sdpa(case: Case, device: str) -> Function:
    return lambda q, k, v: heads_first(q, k, v, case)


def folded(case: Case, device: str) -> Function:
    """The heads of a group as queries of one head, so that its keys are read once whatever the kernel does."""
    if case.nheads == case.nheads_kv:
        raise NotImplementedError("without grouped heads it is plain SDPA")
    alone = replace(case, nheads=case.nheads_kv)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.view(case.batch, case.nheads_kv, -1, case.head_dim).transpose(1, 2)
        return heads_first(q, k, v, alone).transpose(1, 2).reshape(case.batch, 1, case.nheads, case.head_dim)

    return function


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
    common = [*ours(own, backends), Provider("torch sdpa", version, sdpa), Provider("torch matmul", version, matmuls)]
    if device == "cpu":
        return [*common, Provider("torch.compile", version, compiled(matmuls), compiles=True)]
    fast = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    forced = [Provider(f"torch sdpa {short(one)}", version, only(one, sdpa)) for one in fast]
    return [*common, *forced, Provider("torch sdpa folded", version, folded)]


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, inputs(case, device), (), mode)


def part(value: Tensor, case: Case) -> Tensor:
    """What is checked on a GPU, of (batch, seqlen, heads, head_dim): the first and the last sequence, and of those the
    first and the last head of the keys with the queries' heads that read them. All of a large cache in float64
    would not be in the memory; sequences and heads are independent of one another."""
    grouped = value[[0, -1] if case.batch > 1 else [0]].unflatten(2, (case.nheads_kv, -1))
    return grouped[:, :, [0, -1]].flatten(2, 3)


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return outputs if outputs[0].device.type == "cpu" else [part(out, case) for out in outputs]


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result, and that of matmul, softmax, matmul in the case's dtype."""
    from undivided import reference
    from undivided.testing import honest

    values = inputs(case, device)
    if device != "cpu":
        values = {name: part(value, case) for name, value in values.items()}
    exact: Any = reference.attention(*(values[name].double() for name in "qkv"))
    return [exact], [honest.attention(*(values[name] for name in "qkv"))[0]]


ATTENTION_DECODE = Op(
    "attention_decode",
    cases,
    lambda case: ("forward",),
    providers,
    build,
    expected,
    work,
    axis="keys in the cache",
    checked=checked,
    queued=True,
)
