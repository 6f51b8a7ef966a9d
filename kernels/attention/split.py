"""Split keys: where queries are few, several programs share the keys of one block of queries.

Each leaves the attention over its own keys and that part's lse; the parts are then merged, each by the weight exp(lse)
(Dao, Haziza, Massa and Sizov 2023, Flash-Decoding).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.host import multiprocessors, power_of_two
from .launch import Launch
from .tile import LOG2E

# One program on each multiprocessor where it has this many bytes of keys and values under way, else two. On an H200 at
# head_dim 128, caches of 1024 to 65536 keys: with 96 KiB one took 0.98 of the time of two, with 48 KiB 1.2.
ENOUGH_UNDER_WAY = 64 * 1024
# One block of most tables. A cache of 1024 keys and 4 key heads, by blocks of 32 keys on an H200: 6.5 us in parts of 64
# keys, 7.8 in parts of 128, 10.8 in parts of 256.
LEAST_KEYS = 64
# Parts times columns of one merging program: 8192 float32, 64 registers a thread.
MOST_SPLITS = 128
COLUMNS = 64


def per_multiprocessor(row: Launch, width: int, dtype: torch.dtype) -> int:
    """How many programs of this row are to run on each multiprocessor. width: the head_dim, of keys or values."""
    block = 2 * row.BLOCK_N * width * dtype.itemsize  # bytes of keys and values
    return 1 if (row.num_stages - 1) * block >= ENOUGH_UNDER_WAY else 2


def splits_of(programs: int, keys: int, per_sm: int, device: torch.device) -> int:
    """Among how many programs the keys are shared. It depends on shapes and the device alone, and so do results.

    programs: how many there are without splitting. keys: the most that a query can see. per_sm: of
    `per_multiprocessor`.
    """
    slots = multiprocessors(device) * per_sm
    return max(1, min(slots // max(programs, 1), keys // LEAST_KEYS, MOST_SPLITS))


@triton.jit
def share(low, high, part, parts, BLOCK_N: tl.constexpr):
    """(begin, end) of one of `parts` runs of whole blocks that together are low to high; they differ by a block."""
    blocks = tl.cdiv(tl.maximum(high - low, 0), BLOCK_N)
    each, more = blocks // parts, blocks % parts
    begin = low + (part * each + tl.minimum(part, more)) * BLOCK_N
    size = each + (part < more).to(tl.int32)
    return begin, tl.minimum(begin + size * BLOCK_N, high)


@triton.jit
def combine_kernel(
    partial,  # float32 (splits, batch, seqlen, nheads, head_dim_v), contiguous
    partial_lse,  # float32 (splits, batch, nheads, seqlen), contiguous
    sinks,  # (nheads,)
    out, lse,  # (batch, seqlen, nheads, head_dim_v) and float32 (batch, nheads, seqlen), contiguous
    splits, rows, seqlen, nheads,
    HEAD_DIM_V: tl.constexpr, HAS_SINKS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One row of out a program, in parts of BLOCK_DV columns; rows = batch * seqlen * nheads."""
    row = tl.program_id(0).to(tl.int64)
    h = row % nheads
    at = (row // nheads // seqlen * nheads + h) * seqlen + row // nheads % seqlen
    part = tl.arange(0, BLOCK_S).to(tl.int64)
    d = tl.program_id(1) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    natural = tl.load(partial_lse + part * rows + at, mask=part < splits, other=float("-inf"))
    used = natural != float("-inf")  # a part that saw nothing may not have written its values
    inside = used[:, None] & (d[None, :] < HEAD_DIM_V)
    value = tl.load(partial + (part * rows + row)[:, None] * HEAD_DIM_V + d[None, :], mask=inside, other=0.0)  # [S, DV]
    empty = tl.max(used.to(tl.int32), 0) == 0
    top = tl.max(natural, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + h).to(tl.float32)
        top = tl.maximum(top, sink)
    top = tl.where(empty, 0.0, top)
    weight = tl.exp2((natural - top) * LOG2E)
    total = tl.sum(weight, 0)
    if HAS_SINKS:
        total += tl.exp2((sink - top) * LOG2E)
    total = tl.where(empty, 1.0, total)
    merged = tl.where(empty, 0.0, tl.sum(weight[:, None] * value, 0) / total)
    tl.store(out + row * HEAD_DIM_V + d, merged.to(out.dtype.element_ty), mask=d < HEAD_DIM_V)
    if tl.program_id(1) == 0:
        tl.store(lse + at, tl.where(empty, float("-inf"), top + tl.log2(total) / LOG2E))


def arguments_of(
    partial: Tensor, partial_lse: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor
) -> dict[str, Any]:
    """The kernel's arguments by name, those of `combine`."""
    splits, width = partial.shape[0], out.shape[-1]
    return dict(
        partial=partial, partial_lse=partial_lse, sinks=out if sinks is None else sinks, out=out, lse=lse,
        splits=splits, rows=lse.numel(), seqlen=out.shape[-3], nheads=out.shape[-2],
        HEAD_DIM_V=width, HAS_SINKS=sinks is not None, BLOCK_S=power_of_two(splits),
        BLOCK_DV=min(COLUMNS, power_of_two(width)),
    )  # fmt: skip


def combine(partial: Tensor, partial_lse: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor) -> None:
    """Fills out and lse from the parts of the keys.

    Args:
        partial: float32 (splits, *out.shape); partial_lse: float32 (splits, *lse.shape). Without sinks.
        sinks: (nheads,) or None.
        out: (batch, seqlen, nheads, head_dim_v) or (total, nheads, head_dim_v); lse: float32 (batch, nheads, seqlen)
            or (nheads, total). All contiguous.
    """
    words = arguments_of(partial, partial_lse, sinks, out, lse)
    grid = (lse.numel(), triton.cdiv(out.shape[-1], words["BLOCK_DV"]))
    if min(grid):
        combine_kernel[grid](**words, num_warps=4)
