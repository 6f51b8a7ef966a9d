"""The feed-forward network: cases and providers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .counts import feed_forward_bytes, feed_forward_operations
from .gate import compiled, drawn_on, ours, split, step
from .op import OVERHEAD, Absent, Function, Op, Provider, Runnable, Work
from .peers import feed_forward_peers

# kind: (activation, gated)
KINDS = {"relu": ("relu", False), "gelu": ("gelu", False), "gelu_tanh": ("gelu_tanh", False), "swiglu": ("silu", True)}


@dataclass(frozen=True)
class Case:
    """(rows, d_model) through d_ff, of dtype. Gated kinds have no biases, as models that use them."""

    rows: int
    d_model: int
    d_ff: int
    kind: str
    dtype: str
    gradients: str = "forward_backward"  # the mode in which those are timed

    @property
    def size(self) -> float:
        return float(self.d_model)

    @property
    def group(self) -> str:
        return f"{OVERHEAD if self.rows == 1 else self.kind} {self.dtype}"

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.d_model}x{self.d_ff} {self.group}"


def cases(quick: bool, device: str) -> list[Case]:
    """d_ff 4 d_model, or 8/3 of it when gated, for as many weights; on a CPU hidden states of at most 16 MiB.

    The last one is one row of 8 numbers.
    """
    shapes: tuple[tuple[int, int], ...] = ((256, 512),) if quick else ((2048, 512), (1024, 1024))
    if device == "cuda":
        return cuda_cases(quick)
    rows = []
    for kind in ("gelu", "gelu_tanh", "swiglu") if quick else KINDS:
        for dtype in ("float32", "bfloat16"):
            for count, d_model in shapes:
                d_ff = 64 * round(8 * d_model / 3 / 64) if KINDS[kind][1] else 4 * d_model
                rows.append(Case(count, d_model, d_ff, kind, dtype))
    return [*rows, Case(1, 8, 32, "gelu", "float32")]


def cuda_cases(quick: bool) -> list[Case]:
    """bfloat16, 16384 rows, d_ff 4 d_model, forward and backward apart; float32 once, and the overhead of a call."""
    widths = (1024,) if quick else (512, 1024, 4096)
    base = Case(16384, 1024, 4096, "gelu", "bfloat16", "backward")
    rows = [replace(base, d_model=n, d_ff=4 * n, kind=kind) for kind in ("gelu", "swiglu") for n in widths]
    rows += [] if quick else [replace(base, dtype="float32")]
    return [*rows, Case(1, 8, 32, "gelu", "float32")]


def compiled_where_it_counts(case: Case, device: str) -> Function:
    """On a GPU it compiles for seconds a shape."""
    if device == "cuda" and (case.dtype != "bfloat16" or case.rows == 1):
        raise NotImplementedError("left out on a GPU: it is timed in bfloat16")
    return compiled(eager)(case, device)


def modes(case: Case) -> Sequence[str]:
    return ("forward", case.gradients)


def work(case: Case, mode: str) -> Work:
    gated = KINDS[case.kind][1]
    size = getattr(torch, case.dtype).itemsize
    operations = feed_forward_operations(case.rows, case.d_model, case.d_ff, gated, mode)
    return Work(operations, feed_forward_bytes(case.rows, case.d_model, case.d_ff, gated, size, mode))


# relu jumps at 0, and with it a gradient: in its cases what it is given is sums of multiples of these, which float32
# has exactly in any order, so that rounding moves none of them across 0.
STEPS = dict(x=2**-3, w_in=2**-8, b_in=2**-3)


@lru_cache(maxsize=2)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """x, the weights (scaled, so that every layer's output has about unit variance) and dout."""
    draw = drawn_on(device, torch.float32)
    shapes: dict[str, tuple[int, ...]] = dict(
        x=(case.rows, case.d_model),
        w_in=(case.d_ff, case.d_model),
        w_out=(case.d_model, case.d_ff),
        dout=(case.rows, case.d_model),
    )
    gated = KINDS[case.kind][1]
    shapes |= dict(w_gate=(case.d_ff, case.d_model)) if gated else dict(b_in=(case.d_ff,), b_out=(case.d_model,))
    values = {}
    for name, shape in shapes.items():
        scale = shape[-1] ** -0.5 if name.startswith("w_") else 1.0
        value = draw(*shape) * scale
        if case.kind == "relu" and name in STEPS:
            value = (value / STEPS[name]).round() * STEPS[name]
        values[name] = value.to(device, getattr(torch, case.dtype))
    return values


def with_words(case: Case, definition: Any, **more: Any) -> Function:
    words = dict(activation=KINDS[case.kind][0], **more)
    absent: dict[str, Any] = dict(b_in=None, b_out=None) if KINDS[case.kind][1] else {}
    return lambda **values: definition(**values, **absent, **words)


def own(case: Case, device: str, backend: str) -> Function:
    import undivided

    return with_words(case, undivided.feed_forward, backend=backend)


def eager(case: Case, device: str) -> Function:
    """What a user of plain torch writes: linear, activation, linear."""
    from undivided.testing import honest

    return with_words(case, honest.feed_forward)


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    return [
        *ours(own, backends),
        Provider("torch eager", torch.__version__, eager),
        Provider("torch.compile", torch.__version__, compiled_where_it_counts, compiles=True),
        *feed_forward_peers(device),
    ]


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, *split(inputs(case, device), ("dout",)), mode)


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The float64 result and plain torch's in the case's dtype."""
    from undivided import reference

    values, grads = split({name: value.double() for name, value in inputs(case, device).items()}, ("dout",))
    exact = step(with_words(case, reference.feed_forward), values, grads, mode)()
    return list(exact), list(build(eager(case, device), case, mode, device)())


FEED_FORWARD = Op("feed_forward", cases, modes, providers, build, expected, work, axis="d_model", queued=True)
