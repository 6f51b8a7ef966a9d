"""How a sequence is dealt to the ranks, and which part of a rank's scores a visiting shard has."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .ring import ring_of, same_on_all_ranks

WHOLE = slice(None)


class Block(NamedTuple):
    """A rectangle of scores: rows of this rank's shard, keys of the visiting one; `causal`: a square's lower half."""

    rows: slice
    keys: slice
    causal: bool


def block_of(rank: int, source: int, seqlen: int, causal: bool, balanced: bool) -> Block | None:
    """What the queries of `rank` see of the keys of `source`; None where it is nothing.

    seqlen: of a shard. A balanced shard is an early chunk and a late one, and every late chunk comes after every early
    one. Early chunks are in the order of the ranks, late ones in the reverse. So of another rank's chunks each is seen
    whole or not at all: all queries see the early chunk of an earlier rank, and only the late ones see both of a later
    rank. The shard's own two chunks, in order, are one causal square.
    """
    if not causal or source == rank:
        return Block(WHOLE, WHOLE, causal)
    if not balanced:
        return Block(WHOLE, WHOLE, False) if source < rank else None
    half = seqlen // 2
    return Block(WHOLE, slice(half), False) if source < rank else Block(slice(half, None), WHOLE, False)


def shard_zigzag(x: Tensor, group: Any = None, dim: int = 1) -> Tensor:
    """This rank's shard of a whole sequence: of 2 * world equal chunks number `rank` and number 2 * world - 1 - rank.

    So every rank has as much to do under a causal mask; the order is that of the public ring-flash-attention work.
    The shard of `torch.arange(seqlen)` is the positions at which a shard's tokens stand.

    Args:
        x: any dtype, the same on every rank; differentiable.
        group: a torch.distributed process group; None is all processes.
        dim: the sequence's dimension.

    Returns:
        x with size seqlen / world in `dim`.

    Raises:
        ValueError: seqlen is not a multiple of 2 * world, or this process is not in the group.
        TypeError: `group` is no process group.
        RuntimeError: no process group is initialised.
    """
    ring = ring_of(group)
    seqlen = x.shape[dim]
    if seqlen % (2 * ring.world):
        raise ValueError(
            f"seqlen {seqlen} is not a multiple of 2 * world = {2 * ring.world}; pad the sequence to "
            f"{-(-seqlen // (2 * ring.world)) * 2 * ring.world}"
        )
    chunks = x.chunk(2 * ring.world, dim) if seqlen else [x] * 2 * ring.world
    return torch.cat([chunks[ring.rank], chunks[-1 - ring.rank]], dim)


def unshard_zigzag(x: Tensor, group: Any = None, dim: int = 1) -> Tensor:
    """The whole sequence on every rank from the shards that `shard_zigzag` deals.

    Args:
        x: this rank's shard, of one shape and dtype on all ranks; it has no gradient: give a loss its own shard.
        group, dim: as in `shard_zigzag`.

    Raises:
        ValueError: seqlen of the shard is odd, or differs between ranks, or x requires a gradient; or this process is
            not in the group.
        TypeError, RuntimeError: as `shard_zigzag`.
    """
    ring = ring_of(group)
    if x.shape[dim] % 2:
        raise ValueError(f"seqlen {x.shape[dim]} of a shard is odd; a shard has two equal chunks")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x requires a gradient, which unshard_zigzag does not have; detach it")
    same: dict[str, float | torch.dtype] = {
        "dtype": x.dtype,
        "dimensions of x": x.dim(),
        "seqlen": x.shape[dim],
        "size of x": x.numel(),
    }
    same_on_all_ranks(ring, same, x.device)
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(ring.world)]
    # As bytes: a group's backend may not know the dtype.
    dist.all_gather([part.view(-1).view(torch.uint8) for part in parts], x.view(-1).view(torch.uint8), group=ring.group)
    halves = [part.chunk(2, dim) if part.shape[dim] else (part, part) for part in parts]
    return torch.cat([early for early, _ in halves] + [late for _, late in reversed(halves)], dim)
