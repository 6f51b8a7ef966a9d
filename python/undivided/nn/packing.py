"""Batches without padding: all sequences laid end to end, as one row of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the tokens of a packed batch stand. It is given where a padded batch has its lengths.

    cu_seqlens: int32 (batch + 1,), sequence b is tokens cu_seqlens[b] to cu_seqlens[b + 1]. positions: int64 (total,),
    each token's place in its sequence. longest: of the sequences.
    """

    cu_seqlens: Tensor
    positions: Tensor
    longest: int


# The position of a batch's first tokens; or where each token of a packed one stands; or, int (batch, seqlen) on their
# device, where each token of a padded one does.
Start = int | Packing | Tensor


def rows_of(x: Tensor, start: Start) -> tuple[slice | Tensor, int]:
    """(rows, how many the table needs) of a table of positions for the tokens of x (batch, seqlen, ...).

    Positions on the device are not looked at, so 0 stands for what they need: it was reserved before.
    """
    if isinstance(start, Tensor):
        return start, 0
    if isinstance(start, Packing):
        return start.positions, start.longest
    end = start + x.shape[1]
    return slice(start, end), end


def pack(x: Tensor, lengths: Tensor) -> tuple[Tensor, Packing]:
    """Takes the padding out of x (batch, seqlen, ...), on the right by `lengths` int (batch,): (1, total, ...).

    Raises:
        ValueError: the lengths do not fit x; the text names them.
    """
    batch, seqlen = x.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected (batch,) = ({batch},)")
    counts = lengths.to(torch.int64)
    low, longest = (int(counts.min()), int(counts.max())) if batch else (0, 0)
    if low < 0 or longest > seqlen:
        raise ValueError(f"lengths hold values from {low} to {longest}; allowed: 0 to {seqlen}")
    places = torch.arange(seqlen, device=x.device).expand(batch, seqlen)
    kept = places < counts[:, None]
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return x[kept][None], Packing(cu_seqlens, places[kept], longest)


def unpack(x: Tensor, packing: Packing, seqlen: int | None = None) -> Tensor:
    """The inverse of `pack`: x (1, total, ...) as (batch, seqlen, ...), padding 0. None is the longest sequence."""
    seqlen = packing.longest if seqlen is None else seqlen
    counts = packing.cu_seqlens.diff().long()
    places = torch.repeat_interleave(counts) * seqlen + packing.positions  # of each token among batch x seqlen
    out = x.new_zeros((counts.shape[0] * seqlen, *x.shape[2:])).index_copy(0, places, x[0])
    return out.unflatten(0, (counts.shape[0], seqlen))
