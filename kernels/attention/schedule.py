"""The order in which the blocks of packed sequences are started: longest first.

Sequences differ in length, so blocks differ in work. If a long block came last, the rest of the machine would wait for
it; a greedy schedule from the longest down ends within 4/3 of the shortest possible time (Graham 1969).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.host import multiprocessors
from .plan import Plan

PER_SM = 2  # programs that run at once on each multiprocessor


def longest_first(plan: Plan, block: int, programs: int, device: torch.device, of_keys: bool = False) -> Tensor | None:
    """int32 (batch * blocks,): the blocks b * blocks + n of every sequence, those that visit most rows first.

    Found on the device, so nothing waits for it. None where any order will do: all sequences have one length, or all
    programs run at once.

    block: rows of a block. of_keys: the blocks are of keys, which visit queries; else of queries, which visit keys.
    """
    if plan.cu_seqlens is None or programs <= multiprocessors(device) * PER_SM:
        return None
    own, other = (starts[1:] - starts[:-1] for starts in plan.cu_seqlens)  # (batch,)
    (left, right), longest = plan.window, plan.longest_q
    if of_keys:  # query i sees keys i - left to i + right, so key j is seen by queries j - right to j + left
        own, other, left, right, longest = other, own, right, left, plan.longest_k
    own, other = own[:, None], other[:, None]
    first = torch.arange(0, longest, block, device=device)
    at = first + other - own  # where the block stands on the other axis
    low = 0 if left is None else (at - left).clamp_min(0)
    high = other if right is None else torch.minimum(other, at + block + right)
    visited = torch.where(first < own, (high - low).clamp_min(0), -1)  # (batch, blocks)
    return visited.flatten().argsort(descending=True, stable=True).to(torch.int32)
