"""The feed-forward backends, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend
from ..rules import (
    faster_than_the_interpreter,
    kernel_dtype,
    needs_cpu_extension,
    needs_gpu_or_interpreter,
    needs_triton,
    on_cpu,
    tensor_cores,
)

TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_feed_forward",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype),
    auto_rules=(faster_than_the_interpreter,),
)
CPU = Backend(name="cpu", module="undivided.cpu.feed_forward", rules=(needs_cpu_extension, on_cpu, kernel_dtype))
REFERENCE = Backend(name="reference", module="undivided.reference")

FEED_FORWARD: tuple[Backend, ...] = (TRITON, CPU, REFERENCE)
