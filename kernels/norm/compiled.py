"""The norm kernels, compiled ahead of time as a call with every feature would: residual, weight, and for layer norm
a bias."""

from __future__ import annotations

from typing import Any

import torch

from ..aot import Resources, compile_kernel
from .backward import SUM, backward_kernel, means_kernel, sum_kernel
from .forward import forward_kernel, long_forward_kernel
from .plan import Launch, table_for

POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
MATRICES = ("x", "residual", "y", "summed", "dy", "dsummed", "dx")


def compile_norm(
    direction: str, columns: int, dtype: torch.dtype, weight_dtype: torch.dtype, capability: int, centred: bool = True
) -> dict[str, Resources]:
    """{kernel: what it needs} of a call's kernels. direction: forward or backward; centred: layer norm, else RMS norm.

    `columns` counts as a multiple of 16, so that whole vectors are loaded.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction={direction!r} is unknown; allowed: forward, backward")
    table = table_for(direction, centred, dtype, capability)
    whole = table.choose(columns)
    row = table.long if whole is None else whole
    kernels: dict[str, tuple[Any, Launch]] = {}
    if direction == "forward":
        kernels["forward"] = (long_forward_kernel if whole is None else forward_kernel, row)
    else:
        kernels["backward"] = (backward_kernel, row)
        kernels["sum"] = (sum_kernel, SUM)
        if whole is None:
            kernels["means"] = (means_kernel, table.means)
    found = {}
    for name, (kernel, launch) in kernels.items():
        given = dict(
            CENTRED=centred, HAS_RESIDUAL=True, HAS_DSUMMED=True, HAS_WEIGHT=True, HAS_BIAS=centred,
            WHOLE=whole is not None, KEEPS_WEIGHT=launch.keeps_weight, ROWS=launch.ROWS, COLUMNS=launch.COLUMNS,
            STAGES=launch.STAGES,
        )  # fmt: skip
        constants = {key: value for key, value in given.items() if key in kernel.arg_names}
        types = {key: type_of(key, dtype, weight_dtype) for key in kernel.arg_names if key not in constants}
        aligned = tuple(key for key in types if types[key][0] == "*" or key.endswith("_row") or key == "columns")
        found[name] = compile_kernel(kernel, types, constants, capability, launch.num_warps, aligned=aligned)
    return found


def type_of(argument: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> str:
    if argument in MATRICES:
        return POINTER[dtype]
    if argument in ("weight", "bias", "dweight", "dbias"):
        return POINTER[weight_dtype]
    if argument == "eps":
        return "fp32"
    return "i32" if argument in ("rows", "columns", "programs") or argument.endswith("_row") else "*fp32"
