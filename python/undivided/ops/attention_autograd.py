"""Autograd of attention over any backend of kernels: one Function in eager, registered ops under torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import load
from .attention_plain import Numbers, Tensors, empty_outputs, launcher_keywords, wants_gradient
from .checks import last_contiguous
from .derivatives import first_derivatives_only, given_back, refuse_transforms
from .registration import by_registered_op, register, register_gradient

TENSORS = len(Tensors._fields)
INTEGERS = ("key_lengths", "query_lengths", "offsets", "cu_seqlens_q", "cu_seqlens_k")
TRAINABLE = ("q", "k", "v", "bias", "relative_table", "sinks")


def run_forward(module: str, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    launchers = load(module)
    return launchers.attention_forward(tensors.q, tensors.k, tensors.v, **launcher_keywords(tensors, numbers))


def run_backward(
    module: str,
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: Tensors,
    numbers: Numbers,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, bias, relative_table, sinks; `needs` speaks of the last three.

    What was saved may come back from hooks with other strides."""
    launchers = load(module)
    t = tensors
    given_back("attention", dout.dtype, q=t.q, k=t.k, v=t.v, out=out)
    given_back("attention", torch.float32, lse=lse, alibi_slopes=t.alibi_slopes)
    given_back("attention", torch.bool, mask=t.mask)
    given_back("attention", torch.int32, **{name: getattr(t, name) for name in INTEGERS})
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    grads = launchers.attention_backward(
        dout,
        *(last_contiguous(value) for value in (t.q, t.k, t.v, out)),
        lse.contiguous(),
        **launcher_keywords(tensors, numbers),
        dlse=None if dlse is None else dlse.contiguous(),
        need_bias=needs[0],
        need_table=needs[1],
        need_sinks=needs[2],
    )
    return tuple(grads)


class AttentionFunction(torch.autograd.Function):
    """apply(module, numbers, *tensors) -> (out, lse)."""

    @staticmethod
    def forward(ctx: Any, module: str, numbers: Numbers, *values: Tensor | None) -> tuple[Tensor, Tensor]:
        tensors = Tensors(*values)  # type: ignore[arg-type]
        out, lse = run_forward(module, tensors, numbers)
        ctx.save_for_backward(*values, out, lse)
        ctx.module, ctx.numbers = module, numbers
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @first_derivatives_only("attention")
    def backward(ctx: Any, saved: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        *values, out, lse = saved
        if dout is None:
            dout = torch.zeros_like(out)
        needs = tuple(ctx.needs_input_grad[2 + Tensors._fields.index(name)] for name in TRAINABLE[3:])
        grads = run_backward(ctx.module, dout, dlse, out, lse, Tensors(*values), ctx.numbers, needs)
        return (None, None, *grads, *(None,) * (TENSORS - len(TRAINABLE)))


_TENSORS = ", ".join(f"Tensor{'' if name in 'qkv' else '?'} {name}" for name in Tensors._fields)
_NUMBERS = (
    "float scale, SymInt? left, SymInt? right, SymInt? offset, int max_distance, bool bidirectional, float? softcap, "
    "float dropout_p, SymInt seed, SymInt? max_seqlen_q, SymInt? max_seqlen_k"
)


def _forward(module: str, *values: Any) -> tuple[Tensor, Tensor]:
    return run_forward(module, Tensors(*values[:TENSORS]), Numbers(*values[TENSORS:]))


def _forward_fake(module: str, *values: Any) -> tuple[Tensor, Tensor]:
    return empty_outputs(Tensors(*values[:TENSORS]))


def _backward(module: str, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *values: Any) -> Any:
    tensors, numbers = Tensors(*values[:TENSORS]), Numbers(*values[TENSORS:-3])
    grads = run_backward(module, dout, dlse, out, lse, tensors, numbers, values[-3:])
    # A registered op returns tensors only, laid out as its fake says: an empty one stands for None.
    return tuple(dout.new_empty(0) if grad is None else grad.contiguous() for grad in grads)


def _backward_fake(module: str, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *values: Any) -> Any:
    tensors = Tensors(*values[:TENSORS])
    kinds = (tensors.bias, tensors.relative_table, tensors.sinks)
    needed = (True, True, True, *values[-3:])
    return tuple(
        torch.empty(value.shape, dtype=value.dtype, device=value.device)
        if wanted and value is not None
        else dout.new_empty(0)
        for value, wanted in zip((*tensors[:3], *kinds), needed, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    module, values = inputs[0], inputs[1:]
    ctx.save_for_backward(*values[:TENSORS], *output)
    ctx.module, ctx.numbers = module, values[TENSORS:]
    ctx.set_materialize_grads(False)


@first_derivatives_only("attention")
def _autograd(ctx: Any, saved: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    *values, out, lse = saved
    needs = tuple(ctx.needs_input_grad[1 + Tensors._fields.index(name)] for name in TRAINABLE[3:])
    dout = torch.zeros_like(out) if dout is None else dout
    grads = list(
        torch.ops.undivided.attention_backward(ctx.module, dout, dlse, out, lse, *values, *ctx.numbers, *needs)
    )
    for i, needed in enumerate(needs):
        grads[3 + i] = grads[3 + i] if needed else None
    rest = TENSORS - len(TRAINABLE) + len(ctx.numbers)
    return (None, *grads, *(None,) * rest)


register("attention_forward", f"(str module, {_TENSORS}, {_NUMBERS}) -> (Tensor, Tensor)", _forward, _forward_fake)
register(
    "attention_backward",
    f"(str module, Tensor dout, Tensor? dlse, Tensor out, Tensor lse, {_TENSORS}, {_NUMBERS}, "
    "bool need_bias, bool need_table, bool need_sinks) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient("attention_forward", _autograd, _setup)


def apply(module: str, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """(out, lse) with gradients, by the cheapest path that the caller's mode allows."""
    if by_registered_op(*tensors):
        return torch.ops.undivided.attention_forward(module, *tensors, *numbers)
    refuse_transforms("attention", *tensors)
    if wants_gradient(tensors)[0]:
        return AttentionFunction.apply(module, numbers, *tensors)
    return run_forward(module, tensors, numbers)
