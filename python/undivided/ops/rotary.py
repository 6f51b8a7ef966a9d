"""Rotary position embedding: the public op."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..dispatch import RotaryCall, choose
from . import rotary_autograd
from .checks import is_float
from .rotary_checks import check_positions, check_tables
from .rotary_table import ROTARY


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Turns each pair (x[i], x[i + head_dim / 2]) by its position's angle (Su et al. 2021, section 3.2).

    Args:
        x: (batch, seqlen, nheads, head_dim), head_dim even.
        cos, sin: (max_seqlen, head_dim / 2), float32, of position times frequency.
        positions: int (seqlen,) or (batch, seqlen), rows of cos and sin; None is 0, 1, 2, ... Their values are checked
            on a CPU only.
        backend: "auto", or one of triton, cpu, reference.

    Returns:
        as x. Differentiable in x; on the reference in cos and sin too.

    Raises:
        ValueError, TypeError: a shape or dtype that is not allowed.
        BackendRefused: the backend asked for cannot run the call.
        NotImplementedError: a forward-mode derivative or a torch.func transform of a kernel; the reference has both.
    """
    found = rotary_autograd.directly(backend, x, cos, sin, positions)
    if found is not None:
        return found
    is_float("x", x)
    if x.dim() != 4 or x.shape[-1] % 2 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, seqlen, nheads, head_dim) with head_dim even")
    check_tables(x, cos, sin)
    if positions is not None:
        check_positions(positions, x, cos.shape[0])
    elif cos.shape[0] < x.shape[1]:
        raise ValueError(f"cos has {cos.shape[0]} positions, x has seqlen {x.shape[1]}; make the table longer")
    row = choose(ROTARY, _describe(x, cos, sin, positions), backend)
    if row.name == "reference":
        return reference.rotary(x, cos, sin, positions)
    return rotary_autograd.apply(row.module, x, cos, sin, positions)


def _describe(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> RotaryCall:
    enabled = torch.is_grad_enabled()
    batch, seqlen, nheads, head_dim = x.shape
    return RotaryCall(
        x.device.type,
        str(x.dtype).removeprefix("torch."),
        batch,
        seqlen,
        nheads,
        head_dim,
        positions=positions is not None,
        needs_grad=enabled and x.requires_grad,
        tables_need_grad=enabled and (cos.requires_grad or sin.requires_grad),
    )
