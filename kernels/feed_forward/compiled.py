"""The feed-forward kernels, compiled ahead of time as a call of a given kind would."""

from __future__ import annotations

from typing import Any

import torch

from ..aot import Resources, compile_kernel
from .backward import backward_kernel
from .forward import forward_kernel
from .plan import launch_of, pass_launch, precision
from .pointwise import activation_kernel, gradients_kernel

KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "activation": activation_kernel,
    "gradients": gradients_kernel,
}
WIDTH = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
NUMBERS = ("rows", "d_model", "d_ff")


def compile_feed_forward(
    name: str, activation: str, gated: bool, dtype: torch.dtype, capability: int, even: bool = True
) -> Resources:
    """What a kernel needs, for contiguous weights, biases and a call that has every gradient.

    Args:
        name: forward, backward (the fused products), activation or gradients (the pointwise passes).
        even: of a product, whether d_model is a multiple of BLOCK_K; of a pass, whether d_ff is a multiple of 16. (A
            product is fused only where both are multiples of 16.)
    """
    kernel = KERNELS[name]
    fused = name in ("forward", "backward")
    row: Any = launch_of(name, gated, dtype) if fused else pass_launch()
    # A stride of 1 is a constant to the compiler: along d_model in w_in and w_gate, along d_ff in w_out.
    constants: dict[str, Any] = dict(
        {key: value for key, value in vars(row).items() if key.isupper()},
        ACTIVATION=activation, GATED=gated, HAS_BIAS=True, SAVE=True, WITH_A=True, WITH_SUMS=True,
        EVEN_K=even, PRECISION=precision(dtype), w_in_k=1, w_gate_k=1, w_out_n=1,
    )  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {}
    for argument in kernel.arg_names:
        if argument not in constants:
            number = argument in NUMBERS or argument.endswith(("_m", "_n", "_k"))
            types[argument] = "i32" if number else "*fp32" if argument == "sums" else WIDTH[dtype]
    aligned = tuple(n for n in types if n != "rows" and (types[n][0] == "*" or fused or even))
    return compile_kernel(kernel, types, constants, capability, row.num_warps, getattr(row, "num_stages", 1), aligned)
