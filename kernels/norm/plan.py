"""Launch choices of the norms: which tile a row of a given length takes, and how many programs share the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..common.host import interpreting, multiprocessors


@dataclass(frozen=True)
class Launch:
    """A tile of ROWS x COLUMNS and what the program that holds it takes.

    per_sm: programs on each multiprocessor, for kernels whose programs loop over blocks of rows.
    STAGES: how many blocks of rows such a loop has under way: 2 loads the next while it computes one.
    keeps_weight: the loop holds the weights in registers; else it reads them for each row, from a cache.
    """

    ROWS: int
    COLUMNS: int
    num_warps: int
    per_sm: int = 0
    STAGES: int = 1
    keeps_weight: bool = True


@dataclass(frozen=True)
class Table:
    """The first of `whole` that holds a row is taken; longer rows go by chunks of `long`.

    means: the chunks with which the backward takes the means of a long row.
    """

    whole: tuple[Launch, ...]
    long: Launch
    means: Launch = Launch(1, 4096, 8)  # 16 elements a thread

    def choose(self, columns: int) -> Launch | None:
        """None for a row that no tile holds."""
        return next((row for row in self.whole if columns <= row.COLUMNS), None)


# Chosen without a GPU: for loads of 16 bytes a thread, and from what compiles without spills for compute capability
# 8.0, 9.0 and 10.0 with every feature, in bfloat16 and float32. No row has been timed yet.
FORWARD = Table(
    whole=(
        Launch(32, 64, 4),  # short rows share a program: 16 elements a thread
        Launch(16, 128, 4),  # the same
        Launch(8, 256, 4),  # the same
        Launch(4, 512, 4),  # the same, and each warp has a row, so that sums stay inside it
        Launch(1, 1024, 4),  # 8 elements a thread: one load of 16 bytes in 16-bit types
        Launch(1, 2048, 4),  # 16 elements a thread, two loads under way
        Launch(1, 4096, 8),  # the same
        Launch(1, 8192, 8),  # 32 elements: with 16 warps float32 spills on 9.0
        Launch(1, 16384, 16),  # the same, up to 124 registers: the register file of a multiprocessor
    ),
    long=Launch(1, 8192, 16),  # at most 64 registers, so that two programs fit
)
BACKWARD = Table(
    whole=(
        Launch(16, 64, 4, 4),  # 8 elements a thread, which with two sums and the weights take 64 to 88 registers
        Launch(8, 128, 4, 4),  # the same
        Launch(4, 256, 4, 4),  # the same
        Launch(2, 512, 4, 4, 2),  # the same; with 1 stage float32 spills on 10.0
        Launch(1, 1024, 4, 4, 2),  # more programs would hide more latency, but each adds a row of sums to memory
        Launch(1, 2048, 4, 3, 2),  # 16 elements, up to 136 registers: three programs fit
        Launch(1, 4096, 8, 2),  # the same, two fit; with 2 stages bfloat16 spills on 10.0
        Launch(1, 8192, 16, 1, 2, keeps_weight=False),  # one fits; with the weights float32 spills on 10.0
    ),
    long=Launch(1, 1024, 4, 4, 2),  # as a whole row of 1024
)
# The interpreter's cost is per operation on a tile, whatever its size. Chunks already at 2049 columns, and weights read
# for each row there, so that small tests reach every path.
INTERPRETED = Table(
    whole=(Launch(8, 2048, 4, 1),),
    long=Launch(8, 1024, 4, 1, keeps_weight=False),
    means=Launch(8, 1024, 4),
)


def table_of(compiled: Table) -> Table:
    return INTERPRETED if interpreting() else compiled


def programs(row: Launch, blocks: int, chunks: int, device: torch.device) -> int:
    """How many programs share the blocks of rows, of each chunk of columns.

    It depends on the shape and the device alone, and so does the order in which a column is summed.
    """
    return min(blocks, triton.cdiv(multiprocessors(device) * row.per_sm, chunks))


def flat(x: Tensor) -> Tensor:
    """x (..., columns) as (rows, columns) with columns next to each other: a view where the strides allow it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
