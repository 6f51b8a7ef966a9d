"""Launch choices, and where a product is fused with its activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.host import interpreting


@dataclass(frozen=True)
class Launch:
    """Tile sizes and resources of a product. M counts rows of x, N columns of d_ff, K what is summed over.

    GROUP_M: how many rows of tiles share a column of weights before the next column (see `matmul.tile_of`).
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class PassLaunch:
    """Tile sizes and resources of a pointwise pass over (rows, d_ff)."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int


# By direction and whether gated, for 16-bit inputs. None has been timed on a GPU yet; all compile without spills for
# compute capability 8.0, 9.0 and 10.0. Gated tiles are half as wide: the forward holds two accumulators (at 128 wide it
# spills for 8.0), and the backward reads and writes five tiles after its product, so that two small programs side by
# side, one at its product while the other is at its memory, promise more than one large.
SIXTEEN_BIT = {
    ("forward", False): Launch(128, 128, 64, 8, 8, 3),
    ("forward", True): Launch(128, 64, 64, 8, 8, 3),
    ("backward", False): Launch(128, 128, 64, 8, 8, 3),
    ("backward", True): Launch(128, 64, 64, 8, 8, 3),
}
# float32 takes twice the bytes of shared memory, so half the depth. It too compiles without spills, in both precisions.
THIRTY_TWO_BIT = Launch(128, 64, 32, 8, 8, 3)
# The interpreter's cost is by operation on a tile, so its tiles are large; a group of 3 leaves a ragged last group.
INTERPRETED = Launch(64, 64, 32, 3, 4, 1)
# 16 elements a thread: two loads of 16 bytes in 16-bit types, enough to keep the memory busy.
PASS = PassLaunch(16, 128, 4)
INTERPRETED_PASS = PassLaunch(64, 64, 4)


def launch_of(direction: str, gated: bool, dtype: torch.dtype) -> Launch:
    """The row of `direction` ("forward" or "backward")."""
    if interpreting():
        return INTERPRETED
    return THIRTY_TWO_BIT if dtype == torch.float32 else SIXTEEN_BIT[direction, gated]


def pass_launch() -> PassLaunch:
    return INTERPRETED_PASS if interpreting() else PASS


def precision(dtype: torch.dtype) -> str:
    """How float32 tiles are multiplied: in full precision unless torch's own switch says otherwise."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


# Where fusing can win, by arithmetic alone; nothing here has been timed on a GPU.
#
# A separate pass over the hidden layer moves a few times rows * d_ff elements, while the product that comes before it
# does 2 * rows * d_ff * d_model operations: the share of the pass falls as 1 / d_model, whatever the rows and d_ff are.
# On a card of 790 TFLOP/s and 4.3 TB/s the pass is 26 % of the forward at d_model 512, 15 % at 1024 and 4 % at 4096.
# Our product replaces 2 of the 6 of a training step. It wins while its speed is at least 0.47, 0.64 and 0.88 of the
# library's for these three, or 0.64, 0.78 and 0.93 where writing h hides only half of the gain. A Triton product
# with plain loads has been seen at 0.84 to 0.98 of the library's, so 1024 is safe, 2048 in doubt and 4096 a loss.
WIDEST_FUSED = 1024
# Below one tile for each of some 132 multiprocessors a product leaves some idle; the library can split the depth.
FEWEST_TILES = 132
# In other sizes rows start at odd addresses, so elements are read one by one, and the products spill registers.
MULTIPLE = 16


def fuses(rows: int, d_model: int, d_ff: int, gated: bool, dtype: torch.dtype) -> bool:
    """Whether the products around the activation are ours, with the activation fused, or the library's."""
    if d_model > WIDEST_FUSED or d_model % MULTIPLE or d_ff % MULTIPLE:
        return False
    # Full-precision float32 does not use tensor cores: some twelve times fewer operations a second, so even at
    # d_model 512 the pass, of twice the bytes, is 5 % of the product.
    if dtype == torch.float32 and precision(dtype) == "ieee":
        return False
    row = launch_of("forward", gated, dtype)
    return -(-rows // row.BLOCK_M) * -(-d_ff // row.BLOCK_N) >= FEWEST_TILES
