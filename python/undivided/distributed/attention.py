"""Attention over a sequence that is spread over the processes of a group: the public op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import choose
from ..ops import attention_checks as checks
from ..ops.attention import describe
from ..ops.attention_plain import Numbers, Tensors
from ..ops.attention_table import ATTENTION
from ..ops.checks import autocast_to, is_flag, last_contiguous
from ..ops.derivatives import refuse_transforms
from .attention_autograd import WHOLE_SEQUENCE, RingAttention, RingCall
from .ring import ring_of, same_on_all_ranks


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: Any = None,
    causal: bool = False,
    balanced: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    check_shards: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`undivided.attention` over a sequence of which every rank holds a shard (Liu et al. 2023, Ring Attention).

    Keys and values go round the ring of ranks while each computes, and partial results are merged by their lse: a rank
    holds its own shard of keys, the visiting one and the next. Backward sends the gradients of keys and values round
    behind them. A collective call: every rank of the group makes it, forward and backward, in the same order.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), this rank's shard of the queries, of one shape on all ranks; dtypes and
            strides as `attention`.
        k: (batch, seqlen_k, nheads_kv, head_dim); v: (batch, seqlen_k, nheads_kv, head_dim_v): its shard of the keys.
            nheads is a multiple of nheads_kv.
        group: a torch.distributed process group (gloo for tensors on a CPU, nccl on GPUs); None is all processes.
        causal: a query sees the keys up to its own position in the whole sequence; seqlen_q = seqlen_k.
        balanced: with causal, what a shard is. True: what `shard_zigzag` deals, chunks `rank` and 2 * world - 1 - rank
            of 2 * world, with which all ranks have equal work (the order of the public ring-flash-attention work).
            False: piece `rank` of `world`, with which the last rank does most of it. Without causal the order of the
            shards is of no matter.
        scale, softcap, return_lse: as `attention`.
        check_shards: compare sizes, dtype and words with the other ranks first, which waits for a GPU. Without it
            shards that differ hang, or give wrong numbers.
        backend: as `attention`, of those that give an lse: auto, cuda, triton, cpu, reference.

    Returns:
        out (batch, seqlen_q, nheads, head_dim_v), q's dtype, this rank's rows of what `attention` gives for the whole
        sequence; with return_lse also lse, float32 (batch, nheads, seqlen_q).

    Raises:
        ValueError, TypeError: a shape, value or dtype that is not allowed, or that differs between ranks; the text
            names it.
        RuntimeError: no process group is initialised.
        NotImplementedError: a second or forward-mode derivative, or a torch.func transform, with any backend; or
            torch.compile traces the call: put it into a function under torch.compiler.disable.
        BackendRefused: as `attention`.
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError("ring_attention is not traced by torch.compile; call it under torch.compiler.disable")
    q, k, v = autocast_to(q, k, v)  # type: ignore[assignment]
    checks.check_qkv(q, k, v, dims=4)
    for name, value in (("balanced", balanced), ("return_lse", return_lse), ("check_shards", check_shards)):
        is_flag(name, value)
    _, right = checks.check_window(None, causal)
    numbers = Numbers(scale=checks.check_numbers(scale, softcap, 0.0, q.shape[-1]), right=right, softcap=softcap)
    plain = Tensors(last_contiguous(q), last_contiguous(k), last_contiguous(v))
    refuse_transforms("ring_attention", *plain[:3], cure=WHOLE_SEQUENCE)
    ring = ring_of(group)
    row = choose(ATTENTION, describe(plain, numbers, True), backend)
    if check_shards:
        same_on_all_ranks(ring, _agreed(plain, numbers, balanced), q.device)
    _check_causal(q.shape[1], k.shape[1], causal, balanced)  # after it: where shards differ, no rank is left waiting
    call = RingCall(ring, row, numbers, causal, balanced)
    out, lse = RingAttention.apply(call, plain.q, plain.k, plain.v)
    return (out, lse) if return_lse else out


def _check_causal(seqlen_q: int, seqlen_k: int, causal: bool, balanced: bool) -> None:
    if causal and seqlen_q != seqlen_k:
        raise ValueError(
            f"causal needs as many keys as queries in a shard: got seqlen_q {seqlen_q}, seqlen_k {seqlen_k}"
        )
    if causal and balanced and seqlen_q % 2:
        raise ValueError(f"seqlen {seqlen_q} of a shard is odd; a balanced one has two equal chunks, see shard_zigzag")


def _agreed(tensors: Tensors, numbers: Numbers, balanced: bool) -> dict[str, float | torch.dtype]:
    """What all ranks must call with."""
    q, k, v = tensors[:3]
    return {
        "dtype": k.dtype,
        "batch": k.shape[0],
        "seqlen_q": q.shape[1],
        "seqlen_k": k.shape[1],
        "nheads": q.shape[2],
        "nheads_kv": k.shape[2],
        "head_dim": k.shape[3],
        "head_dim_v": v.shape[3],
        "causal": numbers.right is not None,
        "balanced": balanced,
        "scale": numbers.scale,
        "softcap (0 is off)": float(numbers.softcap or 0),
        "requires_grad": torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)),
    }
