"""A decode call in the form that the kernel takes: strides, flags, numbers, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..attention.launch import Launch, row_of
from ..attention.plan import buckets_on
from ..attention.split import per_multiprocessor, splits_of
from ..common.host import power_of_two

# By the bytes of an element, then by the padded head_dim (of keys and values, the larger). BLOCK_M is the most rows of
# one program. The cache streams through once, so what counts is the bytes under way. The 16-bit row of head_dim 128
# was timed on an H200, 17 caches of 1024 to 65536 keys with 4 and 32 key heads, at 0.97 to 1.15 of the time of torch's
# scaled_dot_product_attention (geometric mean 1.035; blocks of 32 keys with 3 stages took 1.084), up to 4.4 TB/s. That
# of 64 has as many stages; the others have not been timed. A 16-bit call spills 32 bytes at most for compute
# capability 8.0, 9.0 and 10.0, with one query and with several.
DECODE = {
    2: {16: Launch(32, 64, 4, 3), 32: Launch(32, 64, 4, 3), 64: Launch(32, 64, 4, 4), 128: Launch(32, 64, 4, 4),
        256: Launch(16, 32, 4, 2)},
    4: {16: Launch(32, 32, 4, 1), 32: Launch(32, 32, 4, 1), 64: Launch(32, 32, 4, 1), 128: Launch(32, 16, 4, 1),
        256: Launch(16, 16, 4, 1)},
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """`arguments` go to the kernel by name; the grid is (programs, splits)."""

    arguments: dict[str, Any]
    row: Launch
    programs: int
    splits: int


def make_plan(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_lengths: Tensor, *, k: Tensor | None = None,
    v: Tensor | None = None, block_table: Tensor | None = None, scale: float,
    window: tuple[int | None, int | None] = (None, None), relative_table: Tensor | None = None,
    max_distance: int = 128, bidirectional: bool = True, alibi_slopes: Tensor | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, cos: Tensor | None = None, sin: Tensor | None = None,
) -> Plan:  # fmt: skip
    """The arguments are those of `attention_decode`."""
    batch, seqlen_q, nheads, head_dim = q.shape
    nheads_kv, head_dim_v = v_cache.shape[-2:]
    group, page = nheads // nheads_kv, 0 if block_table is None else k_cache.shape[1]
    longest = k_cache.shape[1] if block_table is None else block_table.shape[1] * page
    seqlen_new = 0 if k is None else k.shape[1]
    left, right = window
    if seqlen_q == 1:
        right = None  # the query is the last token
    width = max(head_dim, head_dim_v)
    row = row_of(DECODE, width, q.dtype)
    rows = seqlen_q * group
    block_m = min(row.BLOCK_M, power_of_two(rows))
    programs = batch * nheads_kv * max(triton.cdiv(rows, block_m), 1)
    keys = longest if left is None or right is None else min(longest, left + right + seqlen_q)
    # Where a load must wait for its block's number the stages do not reach as far ahead.
    per_sm = 2 if page else per_multiprocessor(row, width, q.dtype)
    splits = splits_of(programs, keys, per_sm, q.device)
    buckets, span = None, 0
    if relative_table is not None:
        buckets = buckets_on(q.device, relative_table.shape[0], max_distance, bidirectional)
        span = buckets.shape[0] // 2
    slopes = None if alibi_slopes is None else alibi_slopes.float().expand(batch, nheads)
    if cos is not None and sin is not None:
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
    given = dict(
        q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v, relative=relative_table, slopes=slopes, sinks=sinks,
        buckets=buckets, cache_lengths=cache_lengths.contiguous(), block_table=block_table, cos=cos, sin=sin,
    )  # fmt: skip
    if block_table is not None and block_table.stride(1) != 1:
        given["block_table"] = block_table.contiguous()
    strides: dict[str, int] = {}
    for name in ("q", "k_cache", "v_cache", "k", "v"):
        sizes = (0, 0, 0) if given[name] is None else given[name].stride()[:3]
        strides |= {f"{name}_{dim}": size for dim, size in zip("bsh", sizes, strict=True)}
    for name, dims in (("relative", "nh"), ("slopes", "bh"), ("block_table", "b")):
        sizes = (0, 0) if given[name] is None else given[name].stride()
        strides |= {f"{name}_{dim}": size for dim, size in zip(dims, sizes, strict=False)}
    arguments = dict(
        {name: q if value is None else value for name, value in given.items()},
        **strides,
        batch=batch, seqlen_q=seqlen_q, seqlen_new=seqlen_new, longest=longest, num_blocks=k_cache.shape[0],
        nheads=nheads, group=group, left=left or 0, right=right or 0, span=span,
        places=0 if cos is None else cos.shape[0], scale=float(scale), softcap=float(softcap or 1.0),
        HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v, BLOCK_D=power_of_two(head_dim), BLOCK_DV=power_of_two(head_dim_v),
        PAGE=page, APPENDS=seqlen_new > 0, SPLIT=splits > 1,
        HAS_LEFT=left is not None, HAS_RIGHT=right is not None, HAS_RELATIVE=relative_table is not None,
        HAS_ALIBI=slopes is not None, HAS_SOFTCAP=softcap is not None, HAS_SINKS=sinks is not None and splits == 1,
        HAS_ROTARY=cos is not None,
        PRECISION="tf32" if q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee",
        BLOCK_M=block_m, BLOCK_N=row.BLOCK_N,
    )  # fmt: skip
    return Plan(arguments, row, programs, splits)
