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
from .gate import drawn_on, split, step
from .op import OVERHEAD, Function, Op, Runnable, Work


@dataclass(frozen=True)
class Case:
    """batch x seqlen x nheads x head_dim of dtype.

    lengths: of a batch padded on the right, or with `packed` of sequences laid end to end; `source` names where they
    come from. bias: None, "relative" (T5's, its table trainable) or "alibi". gradients: the mode in which those are
    timed, with the forward or without.
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
    gradients: str = "forward_backward"

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
    """Lengths 128, 512 and 2048, equal tokens a case; then what batches and models really have.

    The last one is a single query of eight numbers. Quick: small enough for many samples in a moment, and with a bias
    so small that the many tensors of torch's backward stay in a cache.
    """
    if device == "cuda":
        return cuda_cases(quick)
    shapes = ((512, 1),) if quick else ((128, 16), (512, 4), (2048, 1))
    rows = []
    for dtype in ("float32", "bfloat16"):
        base = Case(4, 512, 512, 8, 8, 64, dtype)
        sized = [replace(base, batch=batch, seqlen_q=n, seqlen_k=n) for n, batch in shapes]
        for causal in (False, True):
            for head_dim in (64,) if quick else (64, 128):
                rows += [replace(one, head_dim=head_dim, causal=causal) for one in sized]
        biased = [replace(base, batch=1, seqlen_q=256, seqlen_k=256)] if quick else sized[1:]
        rows += [replace(one, bias="relative") for one in biased]
        rows.append(padded(base, "reviews", 2 if quick else 4))
        if not quick:
            rows.append(padded(base, "verses", 32))
            rows.append(replace(padded(base, "reviews", 4), packed=True))
            rows.append(replace(base, seqlen_q=128, source="cross"))
            rows.append(replace(base, nheads=32, nheads_kv=4, batch=1, causal=True))
            rows.append(replace(base, bias="alibi"))
    return [*rows, Case(1, 1, 1, 1, 1, 8, "float32")]


TOKENS, WIDTH = 16384, 2048  # of a case on a GPU: batch x seqlen, nheads x head_dim


def cuda_cases(quick: bool) -> list[Case]:
    """bfloat16, 16384 tokens of 2048 numbers, from 512 to 16384 a sequence, forward and backward apart; what matters
    most comes first, since a run may have an end. float32 once: on a GPU it is no dtype to train in."""

    def sized(n: int, head_dim: int = 64, **words: Any) -> Case:
        heads = WIDTH // head_dim
        return Case(TOKENS // n, n, n, heads, heads, head_dim, "bfloat16", gradients="backward", **words)

    base = sized(2048)
    if quick:
        rows = [base, replace(base, causal=True), replace(base, bias="relative"), padded(base, "reviews", 8)]
        return [*rows, replace(rows[-1], packed=True), Case(1, 1, 1, 1, 1, 8, "float32")]
    rows = [
        sized(n, head_dim, causal=causal)
        for head_dim in (64, 128)
        for causal in (False, True)
        for n in (512, 1024, 2048, 4096, 8192, 16384)
    ]
    rows += [sized(n, bias="relative") for n in (512, 2048, 4096)]
    for drawn in (padded(base, "reviews", 16), padded(base, "verses", 256)):
        rows += [drawn, replace(drawn, packed=True)]
    rows += [replace(sized(4096), batch=16, **{name: 128}) for name in ("seqlen_q", "seqlen_k")]
    rows.append(replace(sized(4096, 128), nheads=32, nheads_kv=4, causal=True))
    rows.append(replace(base, batch=2, dtype="float32"))
    return [*rows, Case(1, 1, 1, 1, 1, 8, "float32")]


def padded(case: Case, source: str, count: int) -> Case:
    drawn = lengths.batch(source, count)
    return replace(case, batch=count, seqlen_q=drawn[0], seqlen_k=drawn[0], lengths=drawn, source=source)


def modes(case: Case) -> Sequence[str]:
    return ("forward",) if case.seqlen_q == 1 else ("forward", case.gradients)


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
    draw = drawn_on(device, getattr(torch, case.dtype))

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
    """The float64 result, and that of matmul, softmax, matmul in the case's dtype; on a GPU of two heads."""
    from undivided import reference
    from undivided.testing import honest

    some = heads_checked(case, device)
    rows = QUERIES_AT_ONCE if some else None
    return exact_or_honest(case, mode, device, reference, torch.float64, some, rows), exact_or_honest(
        case, mode, device, honest, None, some, None
    )


@dataclass(frozen=True)
class Heads:
    """Those that are checked: their numbers among the queries' heads and among the keys'."""

    q: list[int]
    kv: list[int]


QUERIES_AT_ONCE = 2**26  # pairs of query and key of which the float64 reference is in memory


def heads_checked(case: Case, device: str) -> Heads | None:
    """On a GPU the first and the last head of the keys and all heads of queries that read them, of the whole batch: a
    head is independent of the others, with its gradients and its column of T5's table, so that only repetition is
    left out. All heads of 16384 x 16384 in float64 would take half a minute a case. None: every head is checked."""
    if device == "cpu" or case.nheads_kv <= 2:
        return None
    group = case.nheads // case.nheads_kv
    last = case.nheads - group
    return Heads([*range(group), *range(last, case.nheads)], [0, case.nheads_kv - 1])


def exact_or_honest(
    case: Case, mode: str, device: str, place: Any, dtype: torch.dtype | None, some: Heads | None, pairs: int | None
) -> list[Tensor]:
    """What `place`, a module of definitions, has as the outputs or gradients; of the heads in `some`, with about
    `pairs` scores at once at most."""
    definition: Any = place.attention_packed if case.packed else place.attention
    values = {name: value.to(dtype or value.dtype) for name, value in inputs(case, device).items()}
    if some is not None:
        values = {name: of_heads(value, name, some).contiguous() for name, value in values.items()}
    values, grads = split(values, ("dout",))
    scores = values["q"].shape[-2] * case.batch * case.seqlen_q * case.seqlen_k
    if pairs is None or case.packed or scores <= pairs:
        found = step(with_words(case, device, definition, some), values, grads, mode)()
        return [value.detach() for value in found]
    rows = max(1, pairs * case.seqlen_q // scores)
    parts = []
    for start in range(0, case.seqlen_q, rows):
        part = slice(start, start + rows)
        offset = dict(query_offset=start + case.seqlen_k - case.seqlen_q)
        now = values | {"q": values["q"][:, part]}
        function = with_words(case, device, definition, some, **offset)
        parts.append(step(function, now, [grad[:, part] for grad in grads], mode)())
    first = torch.cat([part[0] for part in parts], 1).detach()
    return [first, *(torch.stack(same).sum(0) for same in zip(*(part[1:] for part in parts), strict=True))]


def of_heads(value: Tensor, name: str, some: Heads) -> Tensor:
    """name: of an input, or "out"; heads are the last but one of all but T5's table (num_buckets, nheads)."""
    heads = some.kv if name in ("k", "v") else some.q
    return value[:, heads] if name == "table" else value[..., heads, :]


def with_words(case: Case, device: str, definition: Any, some: Heads | None = None, **more: Any) -> Function:
    """`definition`, called with the case's own words and a table made into a bias; `some`: q, k and v have those heads
    alone."""
    from undivided import ALiBi, RelativeBias

    words: dict[str, Any] = dict(causal=case.causal, **more)
    drawn = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int32, device=device)
    if case.packed and drawn is not None:
        starts = torch.cat([drawn.new_zeros(1), drawn.cumsum(0, dtype=torch.int32)])
        words |= dict(cu_seqlens_q=starts, cu_seqlens_k=starts)
    elif drawn is not None:
        words["key_lengths"] = drawn
    if case.bias == "alibi":
        words["bias"] = ALiBi(case.slopes(device)[some.q if some else slice(None)])

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Any:
        bias = {} if table is None else {"bias": RelativeBias(table)}
        out = definition(q, k, v, **words, **bias)
        return out[0] if isinstance(out, tuple) else out

    return function


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Without what stands in the padding of the output: nobody promises anything of it, and a loss masks it. On a GPU
    two heads of each output and gradient."""
    some = heads_checked(case, outputs[0].device.type)
    if some is not None:
        names = ("out",) if mode == "forward" else ("q", "k", "v", "table")
        outputs = [of_heads(out, name, some) for out, name in zip(outputs, names, strict=False)]
    return unpadded(case, mode, outputs)


def unpadded(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    if mode != "forward" or not case.lengths or case.packed:
        return outputs
    return [torch.cat([out[b, :n] for b, n in enumerate(case.lengths)]) for out in outputs]


def expected_checked(case: Case, mode: str, device: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    exact, honest = expected(case, mode, device)
    return unpadded(case, mode, exact), unpadded(case, mode, honest)


ATTENTION = Op(
    "attention",
    cases,
    modes,
    providers,
    build,
    expected_checked,
    work,
    axis="seqlen of keys",
    checked=checked,
    queued=True,
)
