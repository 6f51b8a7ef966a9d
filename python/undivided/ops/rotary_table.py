"""The backends of rotary, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend, RotaryCall
from ..rules import (
    faster_than_the_interpreter,
    kernel_dtype,
    needs_cpu_extension,
    needs_gpu_or_interpreter,
    needs_triton,
    on_cpu,
    tensor_cores,
)


def fixed_tables(call: RotaryCall) -> str | None:
    if not call.tables_need_grad:
        return None
    return "cos or sin require a gradient, the kernel has one for x alone; detach them, or use the reference"


TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_rotary",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype, fixed_tables),
    auto_rules=(faster_than_the_interpreter,),
)
CPU = Backend(
    name="cpu",
    module="undivided.cpu.rotary",
    rules=(needs_cpu_extension, on_cpu, kernel_dtype, fixed_tables),
)
REFERENCE = Backend(name="reference", module="undivided.reference")

ROTARY: tuple[Backend, ...] = (TRITON, CPU, REFERENCE)
