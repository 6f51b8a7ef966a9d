"""This package's kernels in place of torch's own CUDA kernels, through torch's registry of flash attention.

torch 2.11 and newer let a package put its kernels under scaled_dot_product_attention, below torch's choice among its
backends and below autograd:

    torch.nn.attention.activate_flash_attention_impl("undivided")
    torch.nn.attention.restore_flash_attention_impl()

torch then still decides which of its backends a call takes, and ours stand in for two of them: the flash kernel, which
has no mask, and the memory-efficient one, which has, with the gradient of a float mask. `undivided.sdpa()` takes the
choice over too and has dropout; it is the better way unless other code selects kernels by this registry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.attention
from torch import Tensor

from ..dispatch import Backend, BackendRefused, report_text
from ..ops.attention import describe
from ..ops.attention_autograd import run_backward, run_forward
from ..ops.attention_plain import Numbers, Tensors
from ..ops.attention_table import ATTENTION

NAME = "undivided"
KERNELS = tuple(row for row in ATTENTION if row.name not in ("sdpa", "reference"))


class Handle:
    """What torch keeps while the kernels are active; the overrides live as long as their library."""

    def __init__(self, library: torch.library.Library) -> None:
        self.library: torch.library.Library | None = library

    def remove(self) -> None:
        self.library = None


def register() -> bool:
    """Makes the kernels known to torch under "undivided", without activating them; False where torch is too old."""
    announce: Callable[..., None] | None = getattr(torch.nn.attention, "register_flash_attention_impl", None)
    if announce is None or not hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        return False
    announce(NAME, register_fn=override)
    return True


def override() -> Handle:
    """Overrides torch's CUDA kernels; what torch calls on activation."""
    library = torch.library.Library("aten", "IMPL", "CUDA")
    library.impl("_scaled_dot_product_flash_attention", flash_forward)
    library.impl("_scaled_dot_product_flash_attention_backward", flash_backward)
    library.impl("_scaled_dot_product_efficient_attention", efficient_forward)
    library.impl("_scaled_dot_product_efficient_attention_backward", efficient_backward)
    return Handle(library)


def flash_forward(
    query: Tensor,  # (batch, nheads, seqlen, head_dim), as key, value and the output
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # bottom-right, as in flash attention; torch sends square calls only
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    refuse(dropout_p, return_debug_mask)
    row, tensors, numbers = plain(query, key, value, None, is_causal, None, scale)
    out, lse = run_forward(row.module, tensors, numbers)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of the random numbers, of which there are none
    unused = torch.zeros((), dtype=torch.uint64, device=query.device)
    out = laid_out_as(query, out.transpose(1, 2))
    return out, lse, None, None, query.shape[2], key.shape[2], state, unused, query.new_empty(0)


def flash_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    row, tensors, numbers = plain(query, key, value, None, is_causal, None, scale)
    grads = backward(row, tensors, numbers, grad_out, out, logsumexp, need_bias=False)
    return tuple(laid_out_as(x, grad) for x, grad in zip((query, key, value), grads[:3], strict=True))  # type: ignore


def efficient_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,  # expanded to (batch, nheads, seqlen_q, seqlen_k); -inf where a mask hides
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # top-left
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    refuse(dropout_p, False)
    row, tensors, numbers = plain(query, key, value, attn_bias, is_causal, 0, scale)
    out, lse = run_forward(row.module, tensors, numbers)
    # torch's kernel gives an lse of whole blocks of 32 queries, or of none, and torch.compile counts on its size.
    seqlen_q = query.shape[2]
    padded = lse.new_zeros(*lse.shape[:2], -(-seqlen_q // 32) * 32 if compute_log_sumexp else 0)
    if compute_log_sumexp:
        padded[:, :, :seqlen_q] = lse
    unused = torch.zeros((), dtype=torch.int64, device=query.device)
    return out.transpose(1, 2), padded, unused, unused.clone()


def efficient_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    dropout_p: float,
    grad_input_mask: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    row, tensors, numbers = plain(query, key, value, attn_bias, is_causal, 0, scale)
    need_bias = attn_bias is not None and grad_input_mask[3]
    lse = logsumexp[:, :, : query.shape[2]]
    *grads, small = backward(row, tensors, numbers, grad_out, out, lse, need_bias=need_bias)
    dbias = None
    if attn_bias is not None and small is not None:
        # Summed already where the bias was expanded: torch, which sums there again, finds zeros beside it.
        dbias = attn_bias.new_zeros(attn_bias.shape)
        dbias[tuple(slice(size) for size in small.shape)] = small
    return (*grads, dbias)


def refuse(dropout_p: float, return_debug_mask: bool) -> None:
    if dropout_p:
        raise NotImplementedError(
            f"dropout_p = {dropout_p}: through torch's registry there is no dropout; `with undivided.sdpa():` has it"
        )
    if return_debug_mask:
        raise NotImplementedError("return_debug_mask: the probabilities are never stored")


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    offset: int | None,
    scale: float | None,
) -> tuple[Backend, Tensors, Numbers]:
    """The call in this package's words, and who runs it: the first backend of kernels that can.

    One that `auto` passes over counts too: whoever activates "undivided" has asked for its kernels by name.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    number = query.shape[-1] ** -0.5 if scale is None else scale
    numbers = Numbers(scale=number, right=0 if is_causal else None, offset=offset if is_causal else None)
    tensors = Tensors(q, k, v, bias)
    # Below autograd no tensor requires a gradient: one may follow.
    call = describe(tensors, numbers, return_lse=True)._replace(needs_grad=True)
    for row in KERNELS:
        if not row.objections(call):
            return row, tensors, numbers
    raise BackendRefused(f"no kernel of undivided runs this call\n{call}\n{report_text(KERNELS, call)}")


def backward(
    row: Backend, tensors: Tensors, numbers: Numbers, dout: Tensor, out: Tensor, lse: Tensor, need_bias: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value in torch's layout, and of the bias with size 1 where it was expanded."""
    dq, dk, dv, dbias, *_ = run_backward(
        row.module,
        dout.transpose(1, 2),
        None,
        out.transpose(1, 2),
        lse,
        tensors,
        numbers,
        needs=(need_bias, False, False),
    )
    assert dq is not None and dk is not None and dv is not None  # only the others are made on demand
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), dbias


def laid_out_as(model: Tensor, x: Tensor) -> Tensor:
    """`x` at the strides that torch's fake of the op gives it: those of torch.empty_like(model)."""
    wanted = torch.empty_like(model)
    return x if x.stride() == wanted.stride() else wanted.copy_(x)
