"""The backends of the norms, in the order in which `auto` asks them."""

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


def table(op: str) -> tuple[Backend, ...]:
    return (
        Backend(
            name="triton",
            module=f"undivided.ops.triton_{op}",
            rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype),
            auto_rules=(faster_than_the_interpreter,),
        ),
        Backend("cpu", f"undivided.cpu.{op}", (needs_cpu_extension, on_cpu, kernel_dtype)),
        Backend("reference", "undivided.reference"),
    )


LAYER_NORM = table("layer_norm")
RMS_NORM = table("rms_norm")
