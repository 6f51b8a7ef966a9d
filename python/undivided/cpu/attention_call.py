"""A call of attention in the form that the extension takes: addresses, strides and numbers by name.

The names are those of csrc/cpu/attention.h; what is off is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..reference.bias import relative_buckets
from ..reference.dropout import LOW, seed_state
from . import CPU, DTYPES, address


@dataclass(frozen=True)
class Call:
    """`words` go to the extension; `keep` holds the tensors whose addresses are among them."""

    words: dict[str, Any]
    keep: tuple[Tensor, ...]
    packed_rows: int | None  # in a packed batch, how many rows belong to a sequence
    whole: bool  # every row of q, k and v takes part: no padding, no packing
    buckets: Tensor | None  # int32 (2 * span + 1,)


def rows(x: Tensor) -> tuple[int, int, int, int]:
    """Address and strides (batch, sequence, head) of (batch, seqlen, nheads, head_dim) or (total, nheads, head_dim)."""
    strides = x.stride()
    return address(x), 0 if len(strides) == 3 else strides[0], strides[-3], strides[-2]


def plane(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """Address, strides and dtype of a 4-D tensor; a dimension of size 1 is shared: stride 0."""
    b, h, m, n = (0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return address(x), b, h, m, n, DTYPES.get(x.dtype, 0)


def unexpanded(x: Tensor) -> Tensor:
    """`x` with size 1 in the dimensions whose stride is 0."""
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(dim, 0, 1)
    return x


def readable(x: Tensor) -> Tensor:
    """`x`, unexpanded, with keys next to each other."""
    x = unexpanded(x)
    return x if x.shape[3] == 1 or x.stride(3) == 1 else x.contiguous()


@lru_cache(maxsize=64)
def buckets_by_distance(span: int, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The table's row for the distances from -span to span, int32."""
    distances = torch.arange(-span, span + 1, device=CPU)
    return relative_buckets(distances, num_buckets, max_distance, bidirectional).to(torch.int32)


def dropout_words(dropout_p: float, seed: int) -> tuple[int, int, float]:
    """(state, threshold, keep_scale)."""
    return seed_state(seed), min(round(dropout_p * 2**32), LOW), 1.0 / (1.0 - dropout_p)


def describe(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, window: Any = (None, None),
    query_offset: Any = None, key_lengths: Tensor | None = None, query_lengths: Tensor | None = None,
    mask: Tensor | None = None, bias: Tensor | None = None, relative_table: Tensor | None = None,
    max_distance: int = 128, bidirectional: bool = True, alibi_slopes: Tensor | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, dropout_p: float = 0.0, seed: int = 0,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None, max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Call:  # fmt: skip
    """The keywords are those of `attention_forward`."""
    packed = cu_seqlens_q is not None
    *batch, seqlen_q, nheads, head_dim = q.shape
    *_, seqlen_k, nheads_kv, head_dim_v = v.shape
    if packed:
        seqlen_q, seqlen_k = min(int(max_seqlen_q or 0), seqlen_q), min(int(max_seqlen_k or 0), seqlen_k)
    keep: list[Tensor] = []

    def hold(x: Tensor) -> int:
        keep.append(x)
        return address(x)

    words: dict[str, Any] = dict(
        q=rows(q),
        k=rows(k),
        v=rows(v),
        dtype=DTYPES[q.dtype],
        batch=batch[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1,
        nheads=nheads,
        nheads_kv=nheads_kv,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        scale=float(scale),
        shift=seqlen_k - seqlen_q,
        threads=torch.get_num_threads(),
    )
    left, right = window
    if causal:
        right = 0 if right is None else min(right, 0)
    if left is not None:
        words.update(has_left=True, left=left)
    if right is not None:
        words.update(has_right=True, right=right)
    for name, value in (("key_lengths", key_lengths), ("query_lengths", query_lengths), ("cu_q", cu_seqlens_q),
                        ("cu_k", cu_seqlens_k)):  # fmt: skip
        if value is not None:
            words[name] = hold(value.contiguous())
    if isinstance(query_offset, Tensor):
        words["shifts"] = hold(query_offset.contiguous())
    elif query_offset is not None:
        words.update(shift=query_offset, own_shift=True)
    buckets = None
    if relative_table is not None:
        span = max(max_distance, relative_table.shape[0])
        buckets = buckets_by_distance(span, relative_table.shape[0], max_distance, bidirectional)
        table = relative_table.detach().float()
        words.update(table=hold(table), table_row=table.stride(0), table_column=table.stride(1))
        words.update(buckets=address(buckets), span=span)
    if alibi_slopes is not None:
        slopes = alibi_slopes.float()
        words.update(
            slopes=hold(slopes),
            slopes_b=slopes.stride(0) if slopes.dim() == 2 else 0,
            slopes_h=slopes.stride(-1),
        )
    if bias is not None:
        dense = readable(bias.detach())
        dense = dense.float() if dense.dtype == torch.float64 else dense
        hold(dense)
        words["bias"] = plane(dense)
    if mask is not None:
        dense = readable(mask).view(torch.uint8)
        hold(dense)
        words["mask"] = plane(dense)
    if softcap is not None:
        words["softcap"] = float(softcap)
    if sinks is not None:
        words["sinks"] = hold(sinks.detach().float().contiguous())
    if dropout_p:
        names = ("state", "threshold", "keep_scale")
        words.update(zip(names, dropout_words(dropout_p, seed), strict=True), dropout=True)
    return Call(
        words=words,
        keep=tuple(keep),
        packed_rows=int(cu_seqlens_q[-1]) if cu_seqlens_q is not None else None,
        whole=not packed and key_lengths is None and query_lengths is None,
        buckets=buckets,
    )
