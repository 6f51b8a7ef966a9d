"""The attention kernels, compiled ahead of time as a call of a given kind would."""

from __future__ import annotations

from typing import Any

import torch

from ..aot import Resources, compile_call, compile_kernel
from .delta import WARPS, delta_kernel
from .delta import arguments_of as delta_arguments
from .forward import forward_kernel
from .gradients import dbias_kernel, dkdv_kernel, dq_kernel
from .launch import launch_of
from .plan import make_plan
from .split import MOST_SPLITS, arguments_of, combine_kernel

KERNELS = {"forward": forward_kernel, "dq": dq_kernel, "dkdv": dkdv_kernel, "dbias": dbias_kernel}
WIDTH = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# What calls have beside sizes: by name, the constants that it sets. One that a kernel does not have is left out.
FEATURES: dict[str, dict[str, Any]] = {
    "relative bias": {"HAS_RELATIVE": True, "NEEDS_TABLE": True, "BLOCK_B": 32},
    "dense bias": {"HAS_BIAS": True},
    "ALiBi": {"HAS_ALIBI": True},
    "mask": {"HAS_MASK": True},
    "window": {"HAS_LEFT": True, "HAS_RIGHT": True},
    "lengths": {"HAS_KEY_LENGTHS": True, "HAS_QUERY_LENGTHS": True},
    "offsets by row": {"HAS_SHIFTS": True},
    "softcap": {"HAS_SOFTCAP": True},
    "sinks": {"HAS_SINKS": True},
    "dropout": {"HAS_DROPOUT": True},
    "turned positions": {"HAS_ROTARY": True},
    "grouped heads": {"group": 4},
}
OWN = {
    "forward": {"HAS_SINKS": False, "HAS_ROTARY": False, "ORDERED": False, "SPLIT": False},
    "dq": {"NEEDS_TABLE": False, "ORDERED": False, "BLOCK_B": 1},
    "dkdv": {"ORDERED": False},
    "dbias": {"SUM_B": True, "SUM_H": False, "SUM_M": False, "SUM_N": False},
}


def compile_attention(
    name: str, head_dim: int, dtype: torch.dtype, capability: int, causal: bool = False, **features: Any
) -> Resources:
    """What a kernel needs (forward, dq, dkdv or dbias), for a square call.

    features: further constants, as those of FEATURES; those that the kernel does not have change nothing.
    """
    kernel = KERNELS[name]
    q = torch.empty((1, 16, 1, head_dim), dtype=dtype)
    plan = make_plan(q, q, q, scale=1.0, causal=causal)
    row = launch_of(name, plan.arguments | features, head_dim, dtype, capability)
    given: dict[str, Any] = dict(plan.arguments, **OWN[name], BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N)
    given |= features
    # As in a call an integer 1 is compiled in: as many key heads as query heads, a contiguous mask.
    ones = {"group": 1, "bias_n": 1, "mask_n": 1} | {key: value for key, value in features.items() if key == "group"}
    constants = {key: value for key, value in given.items() if key.isupper() and key in kernel.arg_names}
    constants |= {key: 1 for key, value in ones.items() if value == 1 and key in kernel.arg_names}
    floats = ("scale", "softcap", "keep_scale")
    statistics = ("lse", "delta", "dtable", "dbias", "values", "slopes", "cos", "sin")
    integers = ("buckets", "shifts", "key_lengths", "query_lengths", "cu_q", "cu_k", "order")
    types = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in statistics:
            types[argument] = "*fp32"
        elif argument in integers:
            types[argument] = "*i32"
        elif argument in ("q", "k", "v", "dout", "out", "dq", "dk", "dv", "sinks", "bias", "mask"):
            types[argument] = "*u8" if argument == "mask" else WIDTH[dtype]
        else:
            types[argument] = "fp32" if argument in floats else "i32"
    ends = ("_b", "_s", "_h")
    aligned = tuple(n for n in types if types[n][0] == "*" or (n.endswith(ends) and n[0] in "qkvdo"))
    return compile_kernel(kernel, types, constants, capability, row.num_warps, row.num_stages, aligned)


def compile_combine(head_dim_v: int, dtype: torch.dtype, capability: int) -> Resources:
    """What merging the parts of split keys needs, with as many parts as there can be."""
    out = torch.empty((1, 1, 16, head_dim_v), dtype=dtype, device="meta")
    lse = torch.empty((1, 16, 1), device="meta")
    parts = (torch.empty((MOST_SPLITS, *t.shape), device="meta") for t in (out, lse))
    return compile_call(combine_kernel, arguments_of(*parts, None, out, lse), capability)


def compile_delta(head_dim_v: int, dtype: torch.dtype, capability: int) -> Resources:
    """What the rows' sums of out * dout need, less the gradient of the lse."""
    out = torch.empty((1, 16, 16, head_dim_v), dtype=dtype, device="meta")
    lse = torch.empty((1, 16, 16), device="meta")
    return compile_call(delta_kernel, delta_arguments(out, out, lse, lse), capability, WARPS)
