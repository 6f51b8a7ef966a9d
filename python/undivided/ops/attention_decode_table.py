"""The backends of attention over caches, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend
from ..rules import (
    faster_than_the_interpreter,
    head_dims,
    kernel_dtype,
    needs_cpu_extension,
    needs_gpu_or_interpreter,
    needs_triton,
    on_cpu,
    tensor_cores,
)

TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_attention_decode",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype, head_dims),
    auto_rules=(faster_than_the_interpreter,),
)
CPU = Backend(
    name="cpu",
    module="undivided.cpu.attention_decode",
    rules=(needs_cpu_extension, on_cpu, kernel_dtype, head_dims),
)
REFERENCE = Backend(name="reference", module="undivided.reference")

ATTENTION_DECODE: tuple[Backend, ...] = (TRITON, CPU, REFERENCE)
