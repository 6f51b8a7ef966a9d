"""The feed-forward backends, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend, FeedForwardCall
from ..rules import (
    kernel_dtype,
    needs_cpu_extension,
    needs_cuda_extension,
    needs_gpu_or_interpreter,
    needs_triton,
    on_cpu,
    on_hopper,
    tensor_cores,
)
from .norm_table import UNPROVEN


def cuda_sizes(call: FeedForwardCall) -> str | None:
    if call.dtype not in ("bfloat16", "float16"):
        return f"dtype {call.dtype} is not one of bfloat16, float16; cast, or use another backend"
    if call.d_model % 8 or call.d_ff % 8:
        return f"d_model {call.d_model} and d_ff {call.d_ff} are not both multiples of 8"
    return None


CUDA = Backend(
    name="cuda",
    module="undivided.cuda.feed_forward",
    rules=(needs_cuda_extension, on_hopper, cuda_sizes),
    auto=False,
    note="it compiles for Hopper, but has not run on a GPU yet",
)
TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_feed_forward",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype),
    auto=False,
    note=UNPROVEN,
)
CPU = Backend(name="cpu", module="undivided.cpu.feed_forward", rules=(needs_cpu_extension, on_cpu, kernel_dtype))
REFERENCE = Backend(name="reference", module="undivided.reference")

FEED_FORWARD: tuple[Backend, ...] = (CUDA, TRITON, CPU, REFERENCE)
