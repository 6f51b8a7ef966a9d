"""The backends of the norms, in the order in which `auto` asks them."""

from __future__ import annotations

from ..dispatch import Backend
from ..rules import kernel_dtype, needs_cpu_extension, on_cpu

UNPROVEN = "it passes the interpreter and compiles, but has not run on a GPU yet"


def table(op: str) -> tuple[Backend, ...]:
    return (
        Backend("cpu", f"undivided.cpu.{op}", (needs_cpu_extension, on_cpu, kernel_dtype)),
        Backend("reference", "undivided.reference"),
    )


LAYER_NORM = table("layer_norm")
RMS_NORM = table("rms_norm")
