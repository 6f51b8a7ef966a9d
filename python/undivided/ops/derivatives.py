"""What the kernels' derivatives cannot do, said clearly instead of answered wrongly.

The kernels have first derivatives in reverse mode. Without these guards a second derivative would be missing from a
sum without a word, a forward-mode tangent would be dropped, and torch.func would hand the kernels tensors that have no
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
from torch.autograd import forward_ad

CURE = "pass backend='reference', which is eager torch"


class FinalGradient(torch.autograd.Function):
    """apply(text, grad, *sources) -> grad, which depends on the sources but has no derivative; `text` says so."""

    @staticmethod
    def forward(ctx: Any, text: str, grad: Tensor, *sources: Tensor) -> Tensor:
        ctx.text = text
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(ctx.text)


def first_derivatives_only(op: str, cure: str = CURE, directly: Any = None) -> Callable[..., Any]:
    """Makes an autograd.Function's backward of backward(ctx, saved tensors, *douts), of whose gradients a derivative
    raises and names the cure. `directly`, with the same arguments, is asked first where no derivative is wanted, and
    gives None where it must be the other."""
    text = f"{op}: the kernels have no second derivatives; {cure}"

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        def run(ctx: Any, *douts: Tensor | None) -> Any:
            saved = ctx.saved_tensors  # once: hooks may have to compute them, and torch's checkpoints do it once
            if directly is not None and not torch.is_grad_enabled():
                grads = directly(ctx, saved, *douts)
                if grads is not None:
                    return grads
            refuse_batched(op, *douts, cure=cure)
            douts = tuple(None if dout is None else dout.resolve_neg() for dout in douts)
            if not torch.is_grad_enabled():  # it is on when the caller asked for create_graph
                return backward(ctx, saved, *douts)
            with torch.no_grad():
                grads = backward(ctx, saved, *douts)
            sources = [t for t in (*douts, *saved) if t is not None and t.requires_grad]
            return tuple(FinalGradient.apply(text, g, *sources) if isinstance(g, Tensor) else g for g in grads)

        return run

    return decorate


def given_back(op: str, dtype: torch.dtype, **saved: Tensor | None) -> None:
    """Raises: TypeError where saved_tensors_hooks gave a saved tensor back in another dtype than it had."""
    for name, value in saved.items():
        if value is not None and value.dtype != dtype:
            raise TypeError(
                f"{op}: {name} was saved for the backward with dtype {dtype} and comes back from the saved-tensor "
                f"hooks with {value.dtype}; they must be the same"
            )


def refuse_batched(op: str, *douts: Tensor | None, cure: str = CURE) -> None:
    """Raises: NotImplementedError for many gradients of the outputs at once, as vectorized Jacobians have them."""
    for dout in douts:
        if dout is not None and (is_batchedtensor(dout) or is_legacy_batchedtensor(dout)):
            raise NotImplementedError(f"{op}: the kernels' backward takes no batches of gradients (vmap); {cure}")


def refuse_transforms(op: str, *values: Tensor | None, cure: str = CURE) -> None:
    """Raises: NotImplementedError inside torch.func's transforms, and for tensors with a forward-mode tangent."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(f"{op}: the kernels do not take part in torch.func's transforms; {cure}")
    if forward_ad._current_level >= 0 and any(
        value is not None and forward_ad.unpack_dual(value).tangent is not None for value in values
    ):
        raise NotImplementedError(f"{op}: the kernels have no forward-mode derivatives; {cure}")
