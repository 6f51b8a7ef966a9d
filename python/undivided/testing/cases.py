"""The case tables that tests, `undivided verify` and the benchmarks share. Every size has a reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..reference import ALiBi, RelativeBias, rotary_tables
from .attention_features import pairwise_rows

Window = tuple[int | None, int | None]


@dataclass(frozen=True)
class AttentionCase:
    """One call of attention, without dtype and device. `why` is the reason for its sizes."""

    name: str
    why: str
    batch: int = 2
    seqlen_q: int = 33
    seqlen_k: int = 33
    nheads: int = 2
    nheads_kv: int = 2
    head_dim: int = 16
    head_dim_v: int | None = None
    causal: bool = False
    window: Window | None = None
    key_lengths: tuple[int, ...] | None = None
    query_lengths: tuple[int, ...] | None = None
    query_offset: int | tuple[int, ...] | None = None
    mask: str | None = None  # which dimensions are full: a subset of "bhqk"
    bias: str | None = None  # "relative", "relative_causal", "alibi", or the full dimensions of a dense one, as "hqk"
    softcap: float | None = None
    sinks: bool = False
    dropout_p: float = 0.0
    rotary: bool = False
    packed_q: tuple[int, ...] | None = None  # lengths; batch and seqlen are then ignored
    packed_k: tuple[int, ...] | None = None
    layout: str = "contiguous"  # "qkv" (views of one projection), "expanded" (stride 0 over the batch)
    offset: float = 0.0  # added to every score through the bias: shifts the lse far below 0


def _sizes() -> list[AttentionCase]:
    case = AttentionCase
    return [
        case("one key", "softmax of a single score", seqlen_k=1),
        case("one query", "a decode step", seqlen_q=1, seqlen_k=65),
        case("one query causal", "the last query sees every key", seqlen_q=1, seqlen_k=65, causal=True),
        case("63", "one under a block", seqlen_q=63, seqlen_k=63, causal=True),
        case("64", "exactly a block", seqlen_q=64, seqlen_k=64, causal=True),
        case("65", "one over a block", seqlen_q=65, seqlen_k=65, causal=True),
        case("127 x 257", "several blocks, ragged both ways", batch=1, seqlen_q=127, seqlen_k=257),
        case("257 x 127 causal", "the first rows see no key", batch=1, seqlen_q=257, seqlen_k=127, causal=True),
        case("no keys", "every row is empty", seqlen_k=0),
        case("no batch", "nothing to do", batch=0),
        case("head_dim 8", "the smallest", head_dim=8),
        case("head_dim 40", "no power of two", head_dim=40, causal=True),
        case("head_dim 64", "the commonest", head_dim=64, seqlen_q=70, seqlen_k=70, causal=True),
        case("head_dim 80", "no power of two, over a block of 64", head_dim=80),
        case("head_dim 128", "the commonest of large models", head_dim=128, causal=True),
        case("head_dim 256", "the largest", batch=1, head_dim=256),
        case("head_dim_v 24", "values narrower than keys", head_dim=32, head_dim_v=24),
        case("qkv views", "strides of a packed projection", layout="qkv", causal=True),
        case("expanded", "stride 0 over the batch, odd length", layout="expanded"),
    ]


def _features() -> list[AttentionCase]:
    case = AttentionCase
    return [
        case("gqa", "a group of query heads shares keys", nheads=6, nheads_kv=2, causal=True),
        case("mqa", "all query heads share keys", nheads=4, nheads_kv=1),
        case("window", "a band", seqlen_q=70, seqlen_k=70, window=(9, 5)),
        case("window causal", "a band below the diagonal", seqlen_q=70, seqlen_k=90, window=(17, None), causal=True),
        case("offset", "queries stand late on the key axis", query_offset=7, causal=True),
        case("offset by row", "each row elsewhere", query_offset=(0, -40), causal=True),
        case("key lengths", "padding, one row all padding", key_lengths=(20, 0)),
        case("key lengths causal", "padding under a diagonal", key_lengths=(33, 9), causal=True),
        case("query lengths", "padding on both sides", key_lengths=(33, 5), query_lengths=(7, 0)),
        case("mask bk", "padding anywhere", mask="bk"),
        case("mask hqk", "any pattern, some rows empty", mask="hqk"),
        case("bias bhqk", "dense, full", bias="bhqk"),
        case("bias hqk", "dense, shared by the batch", bias="hqk", causal=True),
        case("bias bk", "dense, shared by heads and queries", bias="bk"),
        case("bias q", "dense, one number a row: no effect but a gradient of 0", bias="q"),
        case("relative", "T5 encoder", seqlen_q=150, seqlen_k=170, batch=1, bias="relative"),
        case("relative causal", "T5 decoder", seqlen_q=150, seqlen_k=150, batch=1, bias="relative_causal", causal=True),
        case("relative padded", "T5 encoder with padding and GQA", nheads=4, bias="relative", key_lengths=(30, 11)),
        case("alibi", "linear bias", bias="alibi", causal=True),
        case("softcap", "bounded scores", softcap=3.0, causal=True),
        case("softcap far", "a bound far over the scores, of which it leaves all digits", softcap=500.0),
        case("sinks", "an extra logit", sinks=True, key_lengths=(33, 0)),
        case("dropout", "regenerated from the seed", dropout_p=0.3),
        case("dropout causal gqa", "the counter counts query heads", dropout_p=0.2, nheads=4, causal=True),
        case("rotary", "queries and keys turn by their positions", rotary=True, head_dim=64),
        case("rotary short", "each key is loaded once", 3, 20, 33, rotary=True, causal=True, key_lengths=(33, 0, 7)),
        case("rotary by row", "elsewhere in each row", seqlen_q=9, rotary=True, query_offset=(0, 24), head_dim=40),
        case("rotary gqa", "a group of query heads shares keys", nheads=4, rotary=True, causal=True, seqlen_q=12),
        case("low scores", "lse near -120: exp2 of differences only", bias="hqk", offset=-120.0, seqlen_k=65),
        case("packed self", "empty ones", packed_q=(0, 5, 1, 40, 0), packed_k=(0, 5, 1, 40, 0), causal=True),
        case("packed cross", "different packings", packed_q=(3, 17, 8), packed_k=(30, 0, 9)),
        case("packed relative", "T5 over packed sequences", packed_q=(3, 17), packed_k=(30, 9), bias="relative"),
        case("everything", "features that meet", nheads=4, nheads_kv=2, causal=True, window=(20, None), sinks=True,
             key_lengths=(31, 14), bias="relative_causal", softcap=5.0, dropout_p=0.1),
    ]  # fmt: skip


def _pairwise() -> list[AttentionCase]:
    rows = enumerate(pairwise_rows())
    return [AttentionCase(f"pair {number}", why, **fields) for number, (why, fields) in rows]


ATTENTION_CASES: tuple[AttentionCase, ...] = tuple(_sizes() + _features() + _pairwise())
QUICK = (
    "one query",
    "65",
    "head_dim 64",
    "gqa",
    "key lengths",
    "bias hqk",
    "relative",
    "softcap",
    "packed self",
    "everything",
)


@dataclass(frozen=True)
class NormCase:
    """rows x columns, with or without each of weight, bias and residual."""

    name: str
    rows: int
    columns: int
    weight: bool = True
    bias: bool = True
    residual: bool = False
    weight_dtype: str | None = None


NORM_CASES = (
    NormCase("1 x 2", 1, 2),
    NormCase("no rows", 0, 16),
    NormCase("7 x 33", 7, 33),
    NormCase("65 x 512", 65, 512),
    NormCase("5 x 1000 residual", 5, 1000, residual=True),
    NormCase("130 x 128 residual", 130, 128, residual=True),
    NormCase("9 x 100 plain", 9, 100, weight=False, bias=False),
    NormCase("9 x 100 no bias", 9, 100, bias=False),
    NormCase("9 x 96 float32 weights", 9, 96, weight_dtype="float32"),
    NormCase("3 x 5000", 3, 5000, residual=True),
)


@dataclass(frozen=True)
class FeedForwardCase:
    name: str
    rows: int
    d_model: int
    d_ff: int
    activation: str
    gated: bool = False
    biases: bool = True


FEED_FORWARD_CASES = (
    FeedForwardCase("relu", 9, 16, 40, "relu"),
    FeedForwardCase("gelu", 33, 32, 72, "gelu"),
    FeedForwardCase("gelu_tanh", 65, 48, 130, "gelu_tanh"),
    FeedForwardCase("swiglu", 20, 64, 96, "silu", gated=True, biases=False),
    FeedForwardCase("geglu", 17, 24, 33, "gelu_tanh", gated=True),
    FeedForwardCase("no rows", 0, 16, 32, "gelu"),
)


@dataclass(frozen=True)
class RotaryCase:
    """positions: "order" (none given), "token" (one list for the batch) or "row" (a list a row), drawn at random."""

    name: str
    head_dim: int
    positions: str = "order"
    batch: int = 2
    seqlen: int = 5
    nheads: int = 3


ROTARY_CASES = (
    RotaryCase("one pair", 2),
    RotaryCase("head_dim 6 by row", 6, "row"),
    RotaryCase("head_dim 80 by token", 80, "token"),
    RotaryCase("head_dim 128 by row", 128, "row"),
    RotaryCase("head_dim 64", 64, seqlen=40),
    RotaryCase("no tokens", 8, seqlen=0),
)


def make_inputs(
    case: AttentionCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(q, k, v by name, keywords): of `attention`, or of `attention_packed` when the case is packed.

    Values are drawn in float64 and rounded to `dtype`, so that every dtype of a case starts from the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    head_dim_v = case.head_dim if case.head_dim_v is None else case.head_dim_v
    words: dict[str, Any] = dict(causal=case.causal, window=case.window, softcap=case.softcap)
    if case.packed_q is not None and case.packed_k is not None:
        batch, queries, keys = len(case.packed_q), sum(case.packed_q), sum(case.packed_k)
        q = draw(queries, case.nheads, case.head_dim)
        k, v = draw(keys, case.nheads_kv, case.head_dim), draw(keys, case.nheads_kv, head_dim_v)
        for name, lengths in (("cu_seqlens_q", case.packed_q), ("cu_seqlens_k", case.packed_k)):
            starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            words[name] = starts.to(device)
    else:
        batch, queries, keys = case.batch, case.seqlen_q, case.seqlen_k
        q = draw(batch, queries, case.nheads, case.head_dim)
        k, v = draw(batch, keys, case.nheads_kv, case.head_dim), draw(batch, keys, case.nheads_kv, head_dim_v)
        words |= _row_words(case, device)
        words |= _dense_words(case, (batch, case.nheads, queries, keys), draw, dtype, device)
    if case.bias in ("relative", "relative_causal"):
        table = (draw(32, case.nheads) * 0.5).to(device, dtype)
        words["bias"] = RelativeBias(table, 64, bidirectional=case.bias == "relative")
    if case.bias == "alibi":
        words["bias"] = ALiBi(torch.logspace(-1, -3, case.nheads, base=2.0, device=device))
    if case.sinks:
        words["sinks"] = draw(case.nheads).to(device, dtype)
    if case.rotary:
        words["rotary"] = rotary_tables(2 * max(queries, keys), case.head_dim, device=device)
    if case.dropout_p:
        words |= dict(dropout_p=case.dropout_p, seed=1234567890123)
    tensors = {name: value.to(device, dtype) for name, value in (("q", q), ("k", k), ("v", v))}
    return _lay_out(tensors, case.layout), words


def _row_words(case: AttentionCase, device: str) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for name in ("key_lengths", "query_lengths"):
        lengths = getattr(case, name)
        if lengths is not None:
            words[name] = torch.tensor(lengths, dtype=torch.int32, device=device)
    offset = case.query_offset
    if offset is not None:
        words["query_offset"] = offset
    if isinstance(offset, tuple):
        words["query_offset"] = torch.tensor(offset, dtype=torch.int32, device=device)
    return words


def _dense_words(
    case: AttentionCase, shape: tuple[int, ...], draw: Any, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    words: dict[str, Any] = {}

    def partial(dims: str) -> tuple[int, ...]:
        return tuple(size if name in dims else 1 for name, size in zip("bhqk", shape, strict=True))

    if case.mask is not None:
        words["mask"] = (draw(*partial(case.mask)) > -0.5).to(device)
    if case.bias is not None and set(case.bias) <= set("bhqk"):
        words["bias"] = (draw(*partial(case.bias)) + case.offset).to(device, dtype)
    return words


def _lay_out(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    if layout == "qkv":
        projection = torch.cat([value.flatten(-2) for value in tensors.values()], -1)
        parts = projection.split([value.shape[-2] * value.shape[-1] for value in tensors.values()], -1)
        return {
            name: part.unflatten(-1, value.shape[-2:])
            for (name, value), part in zip(tensors.items(), parts, strict=True)
        }
    if layout == "expanded":
        return {name: value[:1].expand(value.shape) for name, value in tensors.items()}
    return tensors


def widened(words: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same keywords with every floating-point tensor in `dtype`, for the reference."""
    wide: dict[str, Any] = {}
    for name, value in words.items():
        if isinstance(value, RelativeBias):
            value = replace(value, table=value.table.to(dtype))
        elif isinstance(value, ALiBi):
            value = ALiBi(value.slopes.to(dtype))
        elif isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(dtype)
        wide[name] = value
    return wide
