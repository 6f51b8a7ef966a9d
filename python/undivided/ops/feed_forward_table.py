"""The feed-forward backends, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend
from ..rules import kernel_dtype, needs_cpu_extension, needs_gpu_or_interpreter, needs_triton, on_cpu, tensor_cores
from .norm_table import UNPROVEN

FEED_FORWARD: tuple[Backend, ...] = (Backend("reference", "undivided.reference"),)
_SOON = (
    Backend(
        "triton",
        "undivided.ops.triton_feed_forward",
        (needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype),
        auto=False,
        note=UNPROVEN,
    ),
    Backend("cpu", "undivided.cpu.feed_forward", (needs_cpu_extension, on_cpu, kernel_dtype)),
    Backend("reference", "undivided.reference"),
)
