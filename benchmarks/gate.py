"""What every op's benchmark shares: a step of work as a function, and the correctness gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .op import Function, Runnable


def step(function: Function, values: Mapping[str, Tensor], grads: Sequence[Tensor], mode: str) -> Runnable:
    """A function of no arguments: the forward, the backward alone (its graph is kept), or both.

    grads: the gradients of the outputs. Returns the outputs, or the gradients of all of `values`.
    """

    def outputs_of(arguments: Mapping[str, Tensor]) -> Sequence[Tensor]:
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


def split(inputs: Mapping[str, Tensor], names: Sequence[str]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """(values, grads): the gradients of the outputs are the entries called `names`, those that are there."""
    values = dict(inputs)
    return values, tuple(values.pop(name) for name in names if name in values)


def drawn_on(device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """draw(*shape): random normal numbers, the same in every run on that kind of device. A GPU draws its own, in
    float32 first: 134 million of a processor would take longer than what is timed."""
    generator = torch.Generator("cuda" if device == "cuda" else "cpu").manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device=generator.device).to(device, dtype)


def budget_of(outputs: Sequence[Tensor], exact: Sequence[Tensor], honest: Sequence[Tensor]) -> tuple[float, float]:
    """(error, budget) of the output that comes nearest to its budget or passes it, as `undivided.testing` has it."""
    from undivided.testing import check
    from undivided.testing.tolerance import largest_value

    scale = max(largest_value(value) for value in exact)
    verdicts = [check("", got, right, plain, scale) for got, right, plain in zip(outputs, exact, honest, strict=True)]
    worst = max(verdicts, key=lambda verdict: (not verdict.ok, verdict.error / max(verdict.budget, 1e-300)))
    return worst.error, worst.budget


def compiled(make: Callable[[Any, str], Function]) -> Callable[[Any, str], Function]:
    """The same provider through torch.compile, for the case's own shapes."""

    def make_compiled(case: Any, device: str) -> Function:
        import torch._functorch.config

        # A backward that is timed alone runs many times over one graph, which donated buffers forbid.
        torch._functorch.config.donated_buffer = False
        return torch.compile(make(case, device), dynamic=False)

    return make_compiled


def ours(call: Callable[[Any, str, str], Function], backends: Sequence[str]) -> list[Any]:
    """Providers of this package: call(case, device, backend) gives the function."""
    import undivided

    from .op import Provider

    def make(backend: str) -> Callable[[Any, str], Function]:
        return lambda case, device: call(case, device, backend)

    return [Provider(f"undivided {name}", undivided.__version__, make(name), backend=name) for name in backends]
