"""Launch choices of the attention kernels: which tiles a call takes, by its kind, its head_dim and the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..common.host import interpreting, power_of_two


@dataclass(frozen=True)
class Launch:
    """Block sizes and resources of one kernel."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


Table = dict[int, dict[int, Launch]]  # by the bytes of an element, then by the padded head_dim, of keys or values

# For any device: what compiles without spills (float32 backward: 24 bytes at most) for compute capability 8.0, 9.0 and
# 10.0 at head_dim 64 and 128, not chosen by timing. Products of float32 do not run on tensor cores, and a thread holds
# whole rows of what it multiplies: tiles are small, threads many.
FORWARD: Table = {
    2: {16: Launch(128, 64, 4, 3), 32: Launch(128, 64, 4, 3), 64: Launch(64, 32, 4, 2), 128: Launch(128, 32, 8, 2),
        256: Launch(32, 32, 4, 1)},
    4: {16: Launch(64, 32, 8, 1), 32: Launch(64, 32, 8, 1), 64: Launch(32, 32, 8, 1), 128: Launch(16, 16, 8, 1),
        256: Launch(16, 16, 8, 1)},
}  # fmt: skip
# A mask or a dense bias takes an address for each element of a tile, as turning does: a thread holds half as many.
FORWARD_DENSE: Table = {2: FORWARD[2] | {64: Launch(64, 32, 8, 2), 128: Launch(64, 32, 8, 2)}, 4: FORWARD[4]}
BACKWARD: Table = {
    2: {16: Launch(64, 64, 4, 1), 32: Launch(64, 64, 4, 1), 64: Launch(32, 32, 4, 1), 128: Launch(32, 32, 8, 1),
        256: Launch(16, 16, 4, 1)},
    4: {16: Launch(64, 32, 4, 1), 32: Launch(64, 32, 4, 1), 64: Launch(32, 16, 4, 1), 128: Launch(32, 16, 8, 1),
        256: Launch(16, 16, 4, 1)},
}  # fmt: skip
INTERPRETED = Launch(64, 64, 4, 1)

# For 16-bit calls on compute capability 9.0, by kernel, kind of call and head_dim; what is not here takes the rows
# above. Timed on an H200 in bfloat16, 16384 tokens in sequences of 4096, 2048 columns of all heads. In brackets:
# TFLOP/s of this row, and of the row above.
HOPPER: dict[str, dict[str, dict[int, Launch]]] = {
    "forward": {
        "plain": {64: Launch(128, 64, 8, 4),  # [382, 313]
                  128: Launch(128, 64, 4, 2)},  # [471, 235]; with 8 warps and 4 stages, which do not spill, 440
        "causal": {64: Launch(64, 64, 4, 3),  # [283, 204]; 128 queries: 315, but up to 472 bytes of spills
                   128: Launch(128, 64, 8, 3)},  # [358, 199]
        "bounded": {64: Launch(64, 32, 4, 3),  # [271, 204] causal: what spills least with any feature
                    128: Launch(64, 32, 4, 3)},  # [312, 199] causal
        "heavy": {64: Launch(64, 32, 4, 3),  # as bounded
                  128: Launch(64, 32, 4, 3)},
        "relative": {64: Launch(64, 32, 4, 3),  # [269, 245]
                     128: Launch(64, 64, 4, 2)},  # [345, 224]
        "relative, bounded": {64: Launch(64, 32, 4, 3),  # as relative
                              128: Launch(64, 32, 4, 2)},  # [329, 224] without a bound; of 64 keys it spills 304 bytes
        # 128 rows are faster, [148] and [179], but see NARROW: with a mask they have been timed and not checked.
        "masked": {64: Launch(64, 32, 4, 2),  # [129, 74]
                   128: Launch(64, 32, 4, 3)},  # [144, 76]
    },
    # Of two sweeps that ended early: at most three rows of each kernel and kind.
    "dq": {
        "plain": {64: Launch(64, 64, 4, 2),  # [522, 117]
                  128: Launch(64, 64, 4, 2)},  # [596, 89]
        "causal": {64: Launch(64, 64, 4, 2),  # [456, 128]
                   128: Launch(64, 64, 4, 2)},  # [504, 88]
        "bounded": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # not timed; 80 bytes of spills at most
        "heavy": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # the same
        "dense": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # not timed, as masked
        "relative": {64: Launch(64, 64, 4, 2),  # [277, 116] with the table's gradient
                     128: Launch(128, 64, 8, 2)},  # [313, 68] with it
        "relative, bounded": {64: Launch(64, 64, 4, 2), 128: Launch(128, 64, 8, 2)},  # not timed
        "masked": {64: Launch(64, 64, 4, 2),  # [256, not timed]
                   128: Launch(64, 64, 4, 2)},  # [346, 57]
    },
    "dkdv": {
        "plain": {64: Launch(64, 64, 4, 2),  # [409, not timed]
                  128: Launch(64, 64, 4, 2)},  # [496, 110]
        "causal": {64: Launch(64, 64, 4, 2),  # [403, 156]
                   128: Launch(64, 64, 4, 2)},  # [463, 86]
        "bounded": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # not timed
        "relative": {64: Launch(64, 64, 4, 2),  # [324, 159]
                     128: Launch(64, 64, 4, 2)},  # [284, 89]
        "relative, bounded": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # not timed
        "heavy": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # not timed, as plain
        "dense": {64: Launch(64, 64, 4, 2), 128: Launch(64, 64, 4, 2)},  # not timed, as masked
        "masked": {64: Launch(64, 64, 4, 2),  # [295, 137]
                   128: Launch(64, 64, 4, 2)},  # [422, 82]
    },
}  # fmt: skip


# Head dims of 16 and 32 on compute capability 9.0, 16-bit: fewer rows than a product of a whole warpgroup takes. With
# more, a masked forward of head_dim 24 and 8 came out wrong on an H200 by ptxas 12.8, which Triton 3.6 brings; by 13.0
# it was right.
NARROW: dict[str, Launch] = {"forward": Launch(32, 64, 4, 3), "dq": Launch(32, 32, 4, 1), "dkdv": Launch(32, 32, 4, 1),
                             "dbias": Launch(32, 32, 4, 1)}  # fmt: skip


def kind_of(constants: Mapping[str, Any]) -> str:
    """The kind of a call with these constants of its kernel; one that is left out is off."""

    def on(*names: str) -> bool:
        return any(constants.get(name) for name in names)

    if on("HAS_ROTARY"):
        return "turned"
    bounded = on("HAS_LEFT", "HAS_RIGHT")
    if on("HAS_BIAS") or (on("HAS_MASK") and bounded):
        return "dense"
    if on("HAS_MASK"):
        return "masked"
    if on("HAS_ALIBI", "HAS_SOFTCAP", "HAS_DROPOUT"):
        return "heavy"
    if on("HAS_RELATIVE"):
        return "relative, bounded" if bounded else "relative"
    if on("HAS_LEFT"):
        return "bounded"
    return "causal" if bounded else "plain"


def launch_of(kernel: str, constants: Mapping[str, Any], width: int, dtype: torch.dtype, compute: int) -> Launch:
    """kernel: forward, dq, dkdv or dbias; width: the head_dim; compute: the compute capability, as 90 for 9.0."""
    kind, padded = kind_of(constants), power_of_two(width)
    if compute == 90 and dtype.itemsize == 2 and not interpreting():
        if padded <= 32:
            return NARROW[kernel]
        row = HOPPER.get(kernel, {}).get(kind, {}).get(padded)
        if row is not None:
            return row
    if kernel != "forward":
        return row_of(BACKWARD, width, dtype)
    return row_of(FORWARD_DENSE if kind in ("dense", "masked", "turned") else FORWARD, width, dtype)


def row_of(table: Table, width: int, dtype: torch.dtype) -> Launch:
    """The interpreter's cost is per operation on a tile, whatever its size: there the tiles are large."""
    return INTERPRETED if interpreting() else table[dtype.itemsize][power_of_two(width)]


def rows_of_turned(width: int, dtype: torch.dtype) -> int:
    """How many queries one program of the forward takes when it turns them by rotary positions, on any device."""
    return launch_of("forward", {"HAS_ROTARY": True}, width, dtype, 0).BLOCK_M
