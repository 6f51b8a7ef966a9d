"""The feed-forward backends, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend, FeedForwardCall
from ..rules import (
    faster_than_the_interpreter,
    kernel_dtype,
    needs_cpu_extension,
    needs_cuda_extension,
    needs_gpu_or_interpreter,
    needs_triton,
    on_cpu,
    on_hopper,
    tensor_cores,
)


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
)
TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_feed_forward",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype),
    auto_rules=(faster_than_the_interpreter,),
)
CPU = Backend(name="cpu", module="undivided.cpu.feed_forward", rules=(needs_cpu_extension, on_cpu, kernel_dtype))
REFERENCE = Backend(name="reference", module="undivided.reference")

FEED_FORWARD: tuple[Backend, ...] = (CUDA, TRITON, CPU, REFERENCE)
