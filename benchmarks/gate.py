"""What every op's benchmark shares: a step of work as a function, and the correctness gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def step(
    function: Callable[..., Any], values: dict[str, Tensor], grads: Sequence[Tensor], mode: str
) -> Callable[[], Sequence[Tensor]]:
    """A function of no arguments: the forward, the backward alone (its graph is kept), or both.

    grads: the gradients of the outputs. Returns the outputs, or the gradients of all of `values`.
    """

    def outputs_of(arguments: dict[str, Tensor]) -> Sequence[Tensor]:
        result = function(**arguments)
        return result if isinstance(result, tuple) else (result,)

    if mode == "forward":

        def forward() -> Sequence[Tensor]:
            with torch.no_grad():
                return outputs_of(values)

        return forward

    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    inputs = list(leaves.values())
    if mode == "backward":
        kept = outputs_of(leaves)
        return lambda: torch.autograd.grad(kept, inputs, grads, retain_graph=True)
    return lambda: torch.autograd.grad(outputs_of(leaves), inputs, grads)


def budget_of(outputs: Sequence[Tensor], exact: Sequence[Tensor], honest: Sequence[Tensor]) -> tuple[float, float]:
    """(error, budget) of the output that comes nearest to its budget or passes it, as `undivided.testing` has it."""
    from undivided.testing import check
    from undivided.testing.tolerance import largest_value

    scale = max(largest_value(value) for value in exact)
    verdicts = [check("", got, right, plain, scale) for got, right, plain in zip(outputs, exact, honest, strict=True)]
    worst = max(verdicts, key=lambda verdict: (not verdict.ok, verdict.error / max(verdict.budget, 1e-300)))
    return worst.error, worst.budget
