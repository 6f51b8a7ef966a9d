"""Launch choices of the norms: which tile a row of a given length takes, and how many programs share the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from ..common.host import capability, interpreting, multiprocessors


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


# Forward, timed on an H200: bfloat16 matrices of 256 MiB, read and written at 3.75 (layer norm at 16384 columns) to
# 4.13 TB/s, where a copy takes 4.16. In brackets: layer norm's and RMS norm's TB/s. All compile without spills for
# compute capability 8.0, 9.0 and 10.0 with every feature.
FORWARD = Table(
    whole=(
        Launch(32, 64, 4),  # short rows share a program: 16 elements a thread; not timed
        Launch(16, 128, 4),  # the same
        Launch(8, 256, 4),  # the same
        Launch(4, 512, 4),  # [4.02, 4.13]; each warp has a row, so that sums stay inside it
        Launch(2, 1024, 4),  # [4.12, 4.12]; with one row a program [3.73, 4.07]
        Launch(1, 2048, 4),  # [4.13, 4.10]
        Launch(2, 4096, 8),  # [4.10, 4.05]; with one row [3.99, 4.07]
        Launch(1, 8192, 8),  # [4.06, 4.01]; with 16 warps float32 spills on 9.0
        Launch(1, 16384, 16),  # [3.75, 3.99]; up to 124 registers: the register file of a multiprocessor
    ),
    long=Launch(1, 8192, 16),  # at most 64 registers, so that two programs fit; at 16384 columns [3.44, 3.86]
)
# Backward, chosen without timing, for what compiles without spills for 8.0, 9.0 and 10.0 in bfloat16 and float32.
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
# Backward for 16-bit matrices on compute capability 9.0, timed on an H200 as the forward. In brackets: layer norm's
# TB/s, and what the rows of BACKWARD reach. A third stage has two blocks of rows under way and takes most of the gain.
# Where a row was timed twice and gave two figures, which happened at 1024 and 2048 columns, both are given. RMS norm
# has not been timed with a third stage; with fewer its best rows reach 3.34 (8192 columns) to 3.85.
HOPPER_BACKWARD = Table(
    whole=(
        Launch(32, 64, 4, 3, 3),  # not timed: a tile of as many elements as that of 512
        Launch(16, 128, 4, 3, 3),  # the same
        Launch(8, 256, 4, 3, 3),  # the same
        Launch(4, 512, 4, 3, 3),  # [3.53, 2.22]
        Launch(2, 1024, 4, 3, 3),  # [3.18 and 3.64, 2.34]
        Launch(2, 2048, 8, 2, 3),  # [3.50 and 3.76, 2.75]
        Launch(2, 4096, 8, 1, 3),  # [3.74, 3.06]
        Launch(1, 8192, 16, 1, 3),  # [3.69, 2.35]
    ),
    long=Launch(1, 1024, 4, 8, 2),  # at 16384 columns [2.22, 1.89]; RMS norm [2.41, 2.06]
)
# Without a bias a row of 16384 fits too: RMS norm has one sum to keep. 3.41 TB/s with the weights kept, where the call
# that has a residual spills 160 bytes; without them 8, and a loop of two stages was then 3 % slower.
HOPPER_BACKWARD_RMS = replace(
    HOPPER_BACKWARD, whole=(*HOPPER_BACKWARD.whole, Launch(1, 16384, 16, 1, keeps_weight=False))
)
# The interpreter's cost is per operation on a tile, whatever its size. Chunks already at 2049 columns, and weights read
# for each row there, so that small tests reach every path.
INTERPRETED = Table(
    whole=(Launch(8, 2048, 4, 1),),
    long=Launch(8, 1024, 4, 1, keeps_weight=False),
    means=Launch(8, 1024, 4),
)


def table_for(direction: str, centred: bool, dtype: torch.dtype, compute: int) -> Table:
    """Of a compiled call. direction: forward or backward; centred: layer norm; compute: the compute capability."""
    if direction == "forward":
        return FORWARD
    if compute != 90 or dtype.itemsize != 2:
        return BACKWARD
    return HOPPER_BACKWARD if centred else HOPPER_BACKWARD_RMS


def table_of(direction: str, centred: bool, x: Tensor) -> Table:
    return INTERPRETED if interpreting() else table_for(direction, centred, x.dtype, capability(x.device))


def programs(row: Launch, blocks: int, chunks: int, device: torch.device) -> int:
    """How many programs share the blocks of rows, of each chunk of columns.

    It depends on the shape and the device alone, and so does the order in which a column is summed.
    """
    return min(blocks, triton.cdiv(multiprocessors(device) * row.per_sm, chunks))


def flat(x: Tensor) -> Tensor:
    """x (..., columns) as (rows, columns) with columns next to each other: a view where the strides allow it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
