"""The case table of attention_decode. What no token stands in holds NaN: it must reach nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference import ALiBi, RelativeBias, rotary_tables


@dataclass(frozen=True)
class DecodeCase:
    """One call of attention_decode, without dtype and device. `why` is the reason for its sizes."""

    name: str
    why: str
    lengths: tuple[int, ...] = (40, 17)  # of the caches before the call; as many as the batch has rows
    longest: int = 70
    seqlen_q: int = 1
    seqlen_new: int = 1  # 0: nothing is appended
    nheads: int = 2
    nheads_kv: int = 2
    head_dim: int = 16
    head_dim_v: int | None = None
    block_size: int | None = None  # given: the caches are paged
    causal: bool = True
    window: tuple[int | None, int | None] | None = None
    bias: str | None = None  # "relative", "relative_both" (bidirectional), "alibi" or "alibi_by_row"
    softcap: float | None = None
    sinks: bool = False
    rotary: bool = False
    layout: str = "contiguous"  # "heads_first" (by strides), "expanded" (stride 0 over the batch)


def _cases() -> list[DecodeCase]:
    case = DecodeCase
    return [
        case("first token", "empty caches", lengths=(0, 0)),
        case("step", "a step of decoding"),
        case("full", "the last token that fits", lengths=(69, 69)),
        case("empty row", "a row sees nothing", lengths=(0, 5), seqlen_new=0),
        case("block edges", "one under, at and over a block of keys", lengths=(63, 254, 255, 256), longest=260),
        case("long", "several parts of keys, ragged", lengths=(1100,), longest=1301),
        case("cross", "attention to a memory, one row of it empty", lengths=(33, 0), seqlen_new=0, causal=False),
        case("several queries", "each sees one token more", seqlen_q=5, seqlen_new=5),
        case("many rows", "a group of heads and queries over a block of rows", nheads=16, seqlen_q=3, seqlen_new=3),
        case("early queries", "the first ones stand before the first token", lengths=(0, 30), seqlen_q=4, seqlen_new=2),
        case("one of several", "fewer queries than new tokens", seqlen_new=5, window=(2, None)),
        case("head_dim 8", "the smallest", head_dim=8),
        case("head_dim 40", "no power of two", head_dim=40),
        case("head_dim 64", "the commonest", head_dim=64, nheads=8, nheads_kv=8),
        case("head_dim 80", "no power of two, over a block of 64", head_dim=80, nheads=4),
        case("head_dim 128", "the commonest of large models", head_dim=128, nheads=8),
        case("head_dim 256", "the largest", head_dim=256),
        case("head_dim_v 24", "values narrower than keys", head_dim=32, head_dim_v=24),
        case("gqa", "three rows a key head", nheads=6),
        case("gqa long", "several parts of keys for a whole group", (700, 513), 720, nheads=8, head_dim=64),
        case("mqa", "all query heads share keys", nheads=7, nheads_kv=1),
        case("heads first", "caches as (batch, nheads, longest, head_dim)", layout="heads_first"),
        case("expanded", "one memory for all rows", (40, 40, 17), seqlen_new=0, causal=False, layout="expanded"),
        case("paged", "blocks in any order", block_size=16),
        case("paged by 7", "blocks of an odd size, a run of keys crosses several", block_size=7, seqlen_q=3, nheads=6),
        case("paged long", "several parts of keys over blocks", (600, 350), 640, block_size=32, head_dim=64, nheads=8),
        case("window", "the first keys are hidden", window=(20, None)),
        case("window long", "several queries, whole blocks hidden", (300, 120), 320, 3, 3, window=(130, 0)),
        case("looking ahead", "a window on both sides of the queries", seqlen_q=4, seqlen_new=4, causal=False,
             window=(9, 1)),
        case("relative", "T5, past its last distance", (200, 17), 210, bias="relative", head_dim=64),
        case("relative both", "buckets of both directions", seqlen_q=3, seqlen_new=3, causal=False,
             bias="relative_both"),
        case("alibi", "linear bias", bias="alibi", nheads=4),
        case("alibi by row", "slopes of their own for each row", bias="alibi_by_row", seqlen_q=2, seqlen_new=2),
        case("softcap", "bounded scores", softcap=3.0),
        case("sinks", "an extra logit, one row empty", (20, 0), seqlen_new=0, sinks=True),
        case("rotary", "queries and new keys turn by their positions", rotary=True, nheads=4, head_dim=64),
        case("rotary long", "several parts of keys for a group", (700, 513), 720, rotary=True, nheads=8, head_dim=128),
        case("rotary several", "more new tokens than queries", seqlen_q=3, seqlen_new=20, rotary=True, head_dim=40),
        case("rotary early", "the first queries have no position", (0, 30), seqlen_q=4, seqlen_new=2, rotary=True),
        case("rotary read", "nothing is appended: the cached keys are turned already", seqlen_new=0, rotary=True),
        case("everything", "features that meet", (150, 90), 176, 3, 3, nheads=4, window=(100, None), sinks=True,
             bias="relative", softcap=5.0, rotary=True, block_size=8),
        case("no batch", "nothing to do", lengths=()),
    ]  # fmt: skip


DECODE_CASES: tuple[DecodeCase, ...] = tuple(_cases())
DECODE_QUICK = ("step", "long", "several queries", "head_dim 64", "gqa", "cross", "paged", "relative", "everything")


def make_decode_inputs(
    case: DecodeCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(q, k_cache, v_cache, cache_lengths by name; the other words of `attention_decode`)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    batch, total = len(case.lengths), [n + case.seqlen_new for n in case.lengths]
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    words: dict[str, Any] = dict(causal=case.causal, window=case.window, softcap=case.softcap)
    widths = (case.head_dim, case.head_dim if case.head_dim_v is None else case.head_dim_v)
    if case.seqlen_new:
        words |= {name: draw(batch, case.seqlen_new, case.nheads_kv, n) for name, n in zip("kv", widths, strict=True)}
    caches = [draw(batch, case.longest, case.nheads_kv, width) for width in widths]
    for cache in caches:
        for b, end in enumerate(total):
            cache[b, end:] = torch.nan
    if case.block_size is not None:
        words["block_table"], caches = _paged(caches, total, case.block_size, generator)
    if case.layout == "heads_first":
        caches = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in caches]
    if case.layout == "expanded":
        caches = [cache[:1].expand(cache.shape) for cache in caches]
    if case.bias is not None and case.bias.startswith("relative"):
        words["bias"] = RelativeBias(draw(32, case.nheads), 64, bidirectional=case.bias == "relative_both")
    elif case.bias is not None:
        shape = (batch, case.nheads) if case.bias == "alibi_by_row" else (case.nheads,)
        words["bias"] = ALiBi(torch.rand(shape, generator=generator).to(device) * 0.5)
    if case.sinks:
        words["sinks"] = draw(case.nheads)
    if case.rotary:
        words["rotary"] = rotary_tables(case.longest, case.head_dim, device=device)
    q = draw(batch, case.seqlen_q, case.nheads, case.head_dim)
    return dict(q=q, k_cache=caches[0], v_cache=caches[1], cache_lengths=lengths), words


def _paged(
    caches: list[Tensor], total: list[int], size: int, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """(block_table, caches in blocks): in a random order, among blocks of NaN that nobody owns. Table entries behind a
    row's tokens are no numbers of blocks."""
    batch, longest = caches[0].shape[:2]
    most = -(-longest // size)
    order = torch.randperm(batch * most + 3, generator=generator)[: batch * most].view(batch, most)
    paged = []
    for cache in caches:
        padded = cache.new_full((batch, most * size, *cache.shape[2:]), torch.nan)
        padded[:, :longest] = cache
        blocks = cache.new_full((batch * most + 3, size, *cache.shape[2:]), torch.nan)
        blocks[order.flatten()] = padded.view(-1, size, *cache.shape[2:])
        paged.append(blocks)
    table = order.to(device=caches[0].device, dtype=torch.int32)
    for b, end in enumerate(total):
        table[b, -(-end // size) :] = -1
    return table, paged
