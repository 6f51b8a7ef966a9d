"""The decode kernel, compiled ahead of time as a call of a given kind would."""

from __future__ import annotations

from typing import Any

import torch

from ..aot import Resources, compile_call
from .forward import decode_kernel
from .plan import make_plan


def compile_decode(
    head_dim: int,
    dtype: torch.dtype,
    capability: int,
    *,
    seqlen_q: int = 1,
    group: int = 1,
    block_size: int = 0,
    appends: bool = True,
    split: bool = False,
    features: bool = False,
    rotary: bool = False,
    **words: Any,
) -> Resources:
    """What the kernel needs, for one batch row of 4096 keys and 8 key heads.

    Args:
        block_size: of a paged cache; 0 is a contiguous one.
        split: whether the keys are shared among programs.
        features: a window, softcap, sinks (where keys are not split) and the relative bias.
        rotary: whether queries and new keys turn by their positions.
        words: further keywords of `attention_decode`.
    """

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    words = dict(scale=0.125, window=(None, 0), **words)
    shape = (1, 4096, 8, head_dim)
    if block_size:
        words["block_table"] = empty(1, 4096 // block_size, of=torch.int32)
        shape = (4096 // block_size, block_size, 8, head_dim)
    if appends:
        words["k"] = words["v"] = empty(1, seqlen_q, 8, head_dim)
    if features:
        words |= dict(window=(1000, 0), softcap=30.0, sinks=empty(8 * group), relative_table=empty(32, 8 * group))
    if rotary:
        words["cos"] = words["sin"] = empty(4096, head_dim // 2, of=torch.float32)
    q, cache = empty(1, seqlen_q, 8 * group, head_dim), empty(*shape)
    plan = make_plan(q, cache, cache, empty(1, of=torch.int32), **words)
    statistics = empty(1, of=torch.float32)
    # The parts of a split are float32.
    arguments = dict(plan.arguments, SPLIT=split, out=statistics if split else q, lse=statistics)
    arguments["HAS_SINKS"] = features and not split
    return compile_call(decode_kernel, arguments, capability, plan.row.num_warps, plan.row.num_stages)
