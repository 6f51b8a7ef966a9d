"""Rotary positions of attention: turned by the kernel as it loads, or by an op of their own before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import AttentionCall, Backend
from .attention_plain import Numbers, Tensors
from .registration import by_registered_op
from .rotary import rotary as turn
from .rotary_table import ROTARY

NAMES = {row.name for row in ROTARY}


def turned(
    tensors: Tensors, numbers: Numbers, tables: tuple[Tensor, Tensor], row: Backend, call: AttentionCall
) -> Tensors:
    """The call with q and k turned, or with the tables, where the kernel of `row` turns them itself.

    Raises:
        ValueError: a query or a key has a position that the tables do not have.
    """
    q, k, (cos, sin) = tensors.q, tensors.k, tables
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    first = seqlen_k - seqlen_q if numbers.offset is None else numbers.offset
    if tensors.offsets is not None:
        first = 0  # of which nothing is known
    if first < 0:
        raise ValueError(f"rotary: query 0 stands at position {first}; allowed from 0 on: see query_offset")
    if cos.shape[0] < max(seqlen_k, first + seqlen_q):
        longest = max(seqlen_k, first + seqlen_q)
        raise ValueError(f"cos has {cos.shape[0]} positions, queries and keys have {longest}; make the table longer")
    if row.name == "triton" and not call.needs_grad and not by_registered_op(*tensors) and _once(call, q.dtype):
        return tensors._replace(cos=cos, sin=sin)
    places = None
    if tensors.offsets is not None:
        places = tensors.offsets.long()[:, None] + torch.arange(seqlen_q, device=q.device)
    elif first:
        places = torch.arange(first, first + seqlen_q, device=q.device)
    backend = row.name if row.name in NAMES else "auto"
    return tensors._replace(q=turn(q, cos, sin, places, backend=backend), k=turn(k, cos, sin, backend=backend))


def _once(call: AttentionCall, dtype: torch.dtype) -> bool:
    """Whether one program alone loads each query and each key: then turning on the way saves a pass over them, and is
    not done twice. (Gradients need what was turned.)"""
    from ..kernels.attention.plan import rows_of_turned  # Triton is there

    few = call.seqlen_q <= rows_of_turned(max(call.head_dim, call.head_dim_v), dtype)
    return few and call.nheads == call.nheads_kv
