"""Attention: cases and providers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import attention_bytes, attention_operations
from .gate import budget_of, step
from .runner import Provider, Work


@dataclass(frozen=True)
class Case:
    """batch x seqlen x nheads x head_dim of dtype. bias: None or "relative" (T5's, trainable)."""

    batch: int
    seqlen_q: int
    seqlen_k: int
    nheads: int
    nheads_kv: int
    head_dim: int
    dtype: str
    causal: bool = False
    lengths: tuple[int, ...] | None = None
    bias: str | None = None

    @property
    def name(self) -> str:
        heads = f"h{self.nheads}/{self.nheads_kv} d{self.head_dim}"
        words = f"b{self.batch} {heads} {self.seqlen_q}x{self.seqlen_k} {self.dtype}"
        words += " causal" if self.causal else ""
        words += " padded" if self.lengths else ""
        return words + (f" {self.bias}" if self.bias else "")


def cases(quick: bool) -> list[Case]:
    """head_dim 64 and 128, seqlen 128, 512 and 2048, equal work per case where memory allows; T5's bias; padding."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        for causal in (False, True):
            for head_dim in (64,) if quick else (64, 128):
                for seqlen, batch in ((512, 2),) if quick else ((128, 16), (512, 4), (2048, 1)):
                    rows.append(Case(batch, seqlen, seqlen, 8, 8, head_dim, dtype, causal))
        for seqlen, batch in ((512, 2),) if quick else ((512, 4), (2048, 1)):
            rows.append(Case(batch, seqlen, seqlen, 8, 8, 64, dtype, bias="relative"))
        rows.append(Case(8, 78, 78, 8, 8, 64, dtype, lengths=(78, 41, 30, 24, 20, 15, 11, 7)))
    return rows


def work(case: Case, mode: str) -> Work:
    shape = (case.batch, case.nheads, case.seqlen_q, case.seqlen_k, case.head_dim)
    operations = attention_operations(*shape, case.causal, mode)
    if case.lengths:
        operations *= sum(n * n for n in case.lengths) / (case.batch * case.seqlen_q * case.seqlen_k)
    size = getattr(torch, case.dtype).itemsize
    heads = (case.batch, case.nheads, case.nheads_kv, case.seqlen_q, case.seqlen_k, case.head_dim)
    return Work(operations, attention_bytes(*heads, size, mode))


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """q, k, v, dout (and a table); random normal. Padded rows of dout are 0, as a masked loss makes them."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    values = dict(
        q=draw(case.batch, case.seqlen_q, case.nheads, case.head_dim),
        k=draw(case.batch, case.seqlen_k, case.nheads_kv, case.head_dim),
        v=draw(case.batch, case.seqlen_k, case.nheads_kv, case.head_dim),
        dout=draw(case.batch, case.seqlen_q, case.nheads, case.head_dim),
    )
    if case.bias == "relative":
        values["table"] = draw(32, case.nheads)
    if case.lengths:
        values["dout"] *= valid(case, case.seqlen_q, device)[:, :, None, None]
    return values


def valid(case: Case, seqlen: int, device: str) -> Tensor:
    assert case.lengths is not None
    return torch.arange(seqlen, device=device) < torch.tensor(case.lengths, device=device)[:, None]


def torch_attention(case: Case, device: str) -> Callable[..., Tensor]:
    """scaled_dot_product_attention as a user of plain torch calls it: a mask for padding, T5's bias made dense."""
    from undivided.reference import relative_buckets

    mask = valid(case, case.seqlen_k, device)[:, None, None, :] if case.lengths else None
    distance = torch.arange(case.seqlen_k, device=device) - torch.arange(case.seqlen_q, device=device)[:, None]
    buckets = relative_buckets(distance, 32) if case.bias else None

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        bias = mask if table is None else table[buckets].permute(2, 0, 1)[None]
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, is_causal=case.causal
        ).transpose(1, 2)

    return function


def our_attention(case: Case, backend: str, device: str) -> Callable[..., Tensor]:
    import undivided

    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device) if case.lengths else None

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Any:
        bias = None if table is None else undivided.RelativeBias(table)
        return undivided.attention(q, k, v, causal=case.causal, key_lengths=lengths, bias=bias, backend=backend)

    return function


def providers(device: str) -> list[Provider]:
    import undivided

    def ours(backend: str) -> Provider:
        def prepare(case: Case, mode: str) -> Callable[[], Sequence[Tensor]]:
            return build(case, mode, our_attention(case, backend, device), device)

        return Provider(f"undivided {backend}", undivided.__version__, prepare, ours=True)

    def eager(case: Case, mode: str) -> Callable[[], Sequence[Tensor]]:
        return build(case, mode, torch_attention(case, device), device)

    def compiled(case: Case, mode: str) -> Callable[[], Sequence[Tensor]]:
        torch.compiler.reset()
        return build(case, mode, torch.compile(torch_attention(case, device), dynamic=False), device)

    return [
        ours("triton" if device == "cuda" else "cpu"),
        Provider("torch sdpa", torch.__version__, eager),
        Provider("torch.compile", torch.__version__, compiled),
    ]


def build(case: Case, mode: str, function: Callable[..., Any], device: str) -> Callable[[], Sequence[Tensor]]:
    values = dict(inputs(case, device))
    grads = (values.pop("dout"),)
    return step(function, values, grads, mode)


@lru_cache(maxsize=8)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result, and that of matmul, softmax, matmul in the case's dtype."""
    from undivided import reference
    from undivided.testing import honest

    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device) if case.lengths else None
    results = []
    for definition, dtype in ((reference.attention, torch.float64), (honest.attention, None)):
        values = {name: value.to(dtype or value.dtype) for name, value in inputs(case, device).items()}
        grads = (values.pop("dout"),)

        def function(q: Tensor, k: Tensor, v: Tensor, table: Any = None, definition: Any = definition) -> Tensor:
            bias = None if table is None else reference.RelativeBias(table)
            out = definition(q, k, v, causal=case.causal, key_lengths=lengths, bias=bias)
            return out[0] if isinstance(out, tuple) else out

        results.append([value.detach() for value in step(function, values, grads, mode)()])
    return results[0], results[1]


def gate(case: Case, mode: str, outputs: Sequence[Tensor], device: str) -> tuple[float, float]:
    return budget_of(outputs, *expected(case, mode, device))
