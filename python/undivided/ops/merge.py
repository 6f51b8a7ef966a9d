"""Merging attention over parts of the keys: the public op."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over disjoint parts of them (Dao et al. 2023, section 3.1).

    Args:
        outs: each (batch, seqlen_q, nheads, head_dim_v); lses: each float32 (batch, nheads, seqlen_q), natural log.

    Returns:
        (out, lse), as one call over all the keys would give. Differentiable.

    Raises:
        ValueError: no parts, or not as many outs as lses, or shapes that differ.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"got {len(outs)} outs and {len(lses)} lses; expected as many of both, at least one")
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        batch, seqlen_q, nheads, _ = outs[0].shape
        if out.shape != outs[0].shape or tuple(lse.shape) != (batch, nheads, seqlen_q):
            raise ValueError(
                f"part {i} has out {tuple(out.shape)} and lse {tuple(lse.shape)}, part 0 {tuple(outs[0].shape)}"
            )
    return reference.merge_attention(outs, lses)
