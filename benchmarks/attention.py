"""Attention: cases, inputs, what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import lengths
from .attention_providers import providers
from .counts import attention_bytes, attention_operations
from .gate import split, step
from .op import OVERHEAD, Function, Op, Runnable, Work


@dataclass(frozen=True)
class Case:
    """batch x seqlen x nheads x head_dim of dtype.

    lengths: of a batch padded on the right, or with `packed` of sequences laid end to end; `source` names where they
    come from. bias: None, "relative" (T5's, its table trainable) or "alibi".
    """

    batch: int
    seqlen_q: int
    seqlen_k: int
    nheads: int
    nheads_kv: int
    head_dim: int
    dtype: str
    causal: bool = False
    lengths: tuple[int, ...] | None = None
    source: str = ""
    packed: bool = False
    bias: str | None = None

    @property
    def size(self) -> float:
        return float(self.seqlen_k)

    @property
    def group(self) -> str:
        if self.seqlen_q == self.seqlen_k == 1:
            return f"{OVERHEAD} {self.dtype}"
        words = ["cross"] if self.seqlen_q != self.seqlen_k else []
        words += ["causal"] if self.causal else []
        words += ["grouped heads"] if self.nheads != self.nheads_kv else []
        words += [f"{'packed' if self.packed else 'padded'} {self.source}"] if self.lengths else []
        words += [{"relative": "T5's bias", "alibi": "ALiBi"}[self.bias]] if self.bias else []
        return " ".join((*(words or ["no mask"]), self.dtype))

    @property
    def name(self) -> str:
        heads = f"h{self.nheads}/{self.nheads_kv} d{self.head_dim}"
        return f"b{self.batch} {self.seqlen_q}x{self.seqlen_k} {heads} {self.group}"

    def slopes(self, device: str) -> Tensor:
        """ALiBi's: (nheads,) float32."""
        return 2.0 ** (-8.0 * torch.arange(1, self.nheads + 1, device=device) / self.nheads)


def cases(quick: bool, device: str) -> list[Case]:
    """Lengths 128, 512 and 2048 (to 8192 on a GPU), equal tokens a case; then what batches and models really have.

    The last one is a single query of eight numbers. Quick: small enough for many samples in a moment.
    """
    shapes = ((512, 1),) if quick else ((128, 16), (512, 4), (2048, 1))
    if device == "cuda":
        shapes = ((2048, 4),) if quick else ((512, 32), (2048, 8), (8192, 2))
    nheads = 16 if device == "cuda" else 8
    rows = []
    for dtype in ("float32", "bfloat16"):
        base = Case(4, 512, 512, nheads, nheads, 64, dtype)
        sized = [replace(base, batch=batch, seqlen_q=n, seqlen_k=n) for n, batch in shapes]
        for causal in (False, True):
            for head_dim in (64,) if quick else (64, 128):
                rows += [replace(one, head_dim=head_dim, causal=causal) for one in sized]
        rows += [replace(one, bias="relative") for one in sized if one.seqlen_q >= 512]
        rows.append(padded(base, "reviews", 2 if quick else 4))
        if not quick:
            rows.append(padded(base, "verses", 32))
            rows.append(replace(padded(base, "reviews", 4), packed=True))
            rows.append(replace(base, seqlen_q=128, source="cross"))
            rows.append(replace(base, nheads=32, nheads_kv=4, batch=1, causal=True))
            rows.append(replace(base, bias="alibi"))
    return [*rows, Case(1, 1, 1, 1, 1, 8, "float32")]


def padded(case: Case, source: str, count: int) -> Case:
    drawn = lengths.batch(source, count)
    return replace(case, batch=count, seqlen_q=drawn[0], seqlen_k=drawn[0], lengths=drawn, source=source)


def modes(case: Case) -> Sequence[str]:
    return ("forward",) if case.seqlen_q == 1 else ("forward", "forward_backward")


def work(case: Case, mode: str) -> Work:
    """Of the valid part alone: what stands in padding is no work that must be done."""
    size = getattr(torch, case.dtype).itemsize
    pairs = [(n, n) for n in case.lengths] if case.lengths else [(case.seqlen_q, case.seqlen_k)] * case.batch
    operations = sum(attention_operations(1, case.nheads, *pair, case.head_dim, case.causal, mode) for pair in pairs)
    moved = sum(attention_bytes(1, case.nheads, case.nheads_kv, *pair, case.head_dim, size, mode) for pair in pairs)
    return Work(operations, moved)


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """q, k, v, dout (and a table); random normal. Padded rows of dout are 0, as a masked loss makes them."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    rows = (sum(case.lengths),) if case.packed and case.lengths else None
    query, key = rows or (case.batch, case.seqlen_q), rows or (case.batch, case.seqlen_k)
    values = dict(q=draw(*query, case.nheads, case.head_dim))
    values |= {name: draw(*key, case.nheads_kv, case.head_dim) for name in ("k", "v")}
    values["dout"] = draw(*query, case.nheads, case.head_dim)
    if case.bias == "relative":
        values["table"] = draw(32, case.nheads)
    if case.lengths and not case.packed:
        inside = torch.arange(case.seqlen_q, device=device) < torch.tensor(case.lengths, device=device)[:, None]
        values["dout"] *= inside[:, :, None, None]
    return values


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, *split(inputs(case, device), ("dout",)), mode)


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result, and that of matmul, softmax, matmul in the case's dtype."""
    from undivided import reference
    from undivided.testing import honest

    results = []
    for place, dtype in ((reference, torch.float64), (honest, None)):
        definition: Any = place.attention_packed if case.packed else place.attention
        values = {name: value.to(dtype or value.dtype) for name, value in inputs(case, device).items()}
        values, grads = split(values, ("dout",))
        results.append([value.detach() for value in step(with_words(case, device, definition), values, grads, mode)()])
    return results[0], results[1]


def with_words(case: Case, device: str, definition: Any, **more: Any) -> Function:
    """`definition`, called with the case's own words and a table made into a bias."""
    from undivided import ALiBi, RelativeBias

    words: dict[str, Any] = dict(causal=case.causal, **more)
    drawn = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int32, device=device)
    if case.packed and drawn is not None:
        starts = torch.cat([drawn.new_zeros(1), drawn.cumsum(0, dtype=torch.int32)])
        words |= dict(cu_seqlens_q=starts, cu_seqlens_k=starts)
    elif drawn is not None:
        words["key_lengths"] = drawn
    if case.bias == "alibi":
        words["bias"] = ALiBi(case.slopes(device))

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Any:
        bias = {} if table is None else {"bias": RelativeBias(table)}
        out = definition(q, k, v, **words, **bias)
        return out[0] if isinstance(out, tuple) else out

    return function


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Without what stands in the padding of the output: nobody promises anything of it, and a loss masks it."""
    if mode != "forward" or not case.lengths or case.packed:
        return outputs
    return [torch.cat([out[b, :n] for b, n in enumerate(case.lengths)]) for out in outputs]


def expected_checked(case: Case, mode: str, device: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    exact, honest = expected(case, mode, device)
    return checked(case, mode, exact), checked(case, mode, honest)


ATTENTION = Op(
    "attention", cases, modes, providers, build, expected_checked, work, axis="seqlen of keys", checked=checked
)
