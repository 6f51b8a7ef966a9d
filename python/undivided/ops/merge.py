"""Merging attention over parts of the keys: the public op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .checks import has_shape, is_float, same_device, same_dtype


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over disjoint parts of them (Dao et al. 2023, section 3.1).

    Args:
        outs: lists or tuples, each part (batch, seqlen_q, nheads, head_dim_v), of one dtype.
        lses: as many, each float32 (batch, nheads, seqlen_q), natural log; float64 where the parts are.

    Returns:
        (out, lse), as one call over all the keys would give. Differentiable.

    Raises:
        ValueError: no parts, or not as many outs as lses, or shapes or devices that differ.
        TypeError: a part that is no tensor, or dtypes that differ.
    """
    for name, parts in (("outs", outs), ("lses", lses)):
        if not isinstance(parts, (list, tuple)):
            raise TypeError(f"{name} is a {type(parts).__name__}; allowed: a list or tuple of tensors")
    if not outs or len(outs) != len(lses):
        raise ValueError(f"got {len(outs)} outs and {len(lses)} lses; expected as many of both, at least one")
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        is_float(f"outs[{i}]", out)
        is_float(f"lses[{i}]", lse)
        if out.dim() != 4:
            raise ValueError(f"outs[{i}] has shape {tuple(out.shape)}, expected (batch, seqlen_q, nheads, head_dim_v)")
        batch, seqlen_q, nheads, _ = outs[0].shape
        has_shape(f"outs[{i}]", out, tuple(outs[0].shape), "the shape of outs[0]")
        has_shape(f"lses[{i}]", lse, (batch, nheads, seqlen_q), "(batch, nheads, seqlen_q)")
        same_dtype("outs[0]", outs[0], f"outs[{i}]", out)
        if lse.dtype != (torch.float64 if out.dtype == torch.float64 else torch.float32):
            raise TypeError(f"lses[{i}] has dtype {lse.dtype}; allowed: float32, and float64 with float64 outs")
        same_device("outs[0]", outs[0], f"outs[{i}]", out)
        same_device("outs[0]", outs[0], f"lses[{i}]", lse)
    return reference.merge_attention(outs, lses)
