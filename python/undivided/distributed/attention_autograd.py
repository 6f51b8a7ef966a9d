"""Ring attention, forward and backward, as one autograd.Function over any backend that gives an lse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..dispatch import Backend
from ..ops.attention import run
from ..ops.attention_autograd import run_backward
from ..ops.attention_plain import Numbers, Tensors
from ..ops.derivatives import first_derivatives_only
from .ring import Ring
from .zigzag import Block, block_of

WHOLE_SEQUENCE = "call attention with backend='reference' on the whole sequence"


@dataclass(frozen=True)
class RingCall:
    """What forward and backward of one call share; `numbers` are those of a block without a mask."""

    ring: Ring
    backend: Backend
    numbers: Numbers
    causal: bool
    balanced: bool

    def block(self, source: int, seqlen: int) -> Block | None:
        return block_of(self.ring.rank, source, seqlen, self.causal, self.balanced)

    def numbers_of(self, block: Block) -> Numbers:
        return self.numbers._replace(right=0 if block.causal else None)


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which results of many blocks are summed."""
    return torch.promote_types(dtype, torch.float32)


def forward(call: RingCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) of this rank's queries over the keys of all ranks."""
    out = lse = torch.empty(0)
    for source, (key, value) in call.ring.visits(k, v):
        block = call.block(source, q.shape[1])
        if block is None:
            continue
        rows, keys, _ = block
        part, part_lse = run(call.backend, Tensors(q[:, rows], key[:, keys], value[:, keys]), call.numbers_of(block))
        part = part.to(wide(q.dtype))
        assert part_lse is not None
        if source == call.ring.rank:  # the first, and in it every query has its place
            out, lse = part, part_lse
            continue
        merged = ops.merge_attention([out[:, rows], part], [lse[:, :, rows], part_lse])
        out[:, rows], lse[:, :, rows] = merged
    return out.to(q.dtype), lse


def backward(
    call: RingCall, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv). The gradients of a shard of keys travel behind it and end where it started."""
    dq = torch.zeros_like(q, dtype=wide(q.dtype))
    coming = None
    for source, (key, value) in call.ring.visits(k, v):
        block = call.block(source, q.shape[1])
        grads = None if block is None else gradients(call, block, q, key, value, out, lse, dout, dlse)
        # Only now: they were sent when the rank before was done with this shard.
        dk, dv = [torch.zeros_like(t, dtype=dq.dtype) for t in (k, v)] if coming is None else coming.wait()
        if block is not None and grads is not None:
            dq[:, block.rows] += grads[0]
            dk[:, block.keys] += grads[1]
            dv[:, block.keys] += grads[2]
        coming = call.ring.pass_on(dk, dv)
    assert coming is not None
    dk, dv = coming.wait()
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def gradients(
    call: RingCall,
    block: Block,
    q: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
) -> tuple[Tensor, ...]:
    """What one block adds to dq, dk and dv.

    The kernels make probabilities from the lse that they are given: with that of the whole sequence, and with its out,
    a block's gradients are exact.
    """
    rows, keys, _ = block
    tensors, numbers = Tensors(q[:, rows], key[:, keys], value[:, keys]), call.numbers_of(block)
    out, dout, lse = out[:, rows], dout[:, rows], lse[:, :, rows]
    dlse = None if dlse is None else dlse[:, :, rows]
    if call.backend.name == "reference":
        return by_autograd(call.backend, tensors, numbers, out, lse, dout, dlse)
    return run_backward(call.backend.module, dout, dlse, out, lse, tensors, numbers, (False, False, False))[:3]  # type: ignore[return-value]


def by_autograd(
    backend: Backend, tensors: Tensors, numbers: Numbers, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None
) -> tuple[Tensor, ...]:
    """The same for a backend that is eager torch, from the derivatives of merging.

    out = sum over blocks of weight * part, weight = exp(part_lse - lse): a block's part has the gradient weight * dout,
    and its lse has weight * (sum(dout * (part - out)) + dlse).
    """
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    with torch.enable_grad():
        part, part_lse = run(backend, Tensors(*leaves), numbers)
    assert part_lse is not None
    weight = torch.where(torch.isneginf(part_lse), 0.0, torch.exp(part_lse - lse)).detach()
    dout = dout.to(weight.dtype)
    change = (dout * (part.detach().to(weight.dtype) - out)).sum(-1).transpose(1, 2)
    dpart = (dout * weight.transpose(1, 2)[..., None]).to(part.dtype)
    dpart_lse = weight * (change if dlse is None else change + dlse)
    return torch.autograd.grad((part, part_lse), leaves, (dpart, dpart_lse))


class RingAttention(torch.autograd.Function):
    """apply(call, q, k, v) -> (out, lse)."""

    @staticmethod
    def forward(ctx: Any, call: RingCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = forward(call, q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @first_derivatives_only("ring_attention", WHOLE_SEQUENCE)
    def backward(ctx: Any, saved: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse = saved
        dout = torch.zeros_like(out) if dout is None else dout
        return None, *backward(ctx.call, q, k, v, out, lse, dout, dlse)
