"""The feed-forward backends, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend
from ..rules import kernel_dtype, needs_cpu_extension, needs_gpu_or_interpreter, needs_triton, on_cpu, tensor_cores
from .norm_table import UNPROVEN

TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_feed_forward",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype),
    auto=False,
    note=UNPROVEN,
)
CPU = Backend(name="cpu", module="undivided.cpu.feed_forward", rules=(needs_cpu_extension, on_cpu, kernel_dtype))
REFERENCE = Backend(name="reference", module="undivided.reference")

FEED_FORWARD: tuple[Backend, ...] = (TRITON, CPU, REFERENCE)
