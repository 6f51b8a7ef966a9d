"""delta, which the backward takes off each gradient of a row's probabilities: the row's sum of out * dout, less dlse.

With probabilities p and their gradients dp a score's gradient is p * (dp - delta), and delta, the sum of p * dp over a
row, is also the sum of out * dout (Dao et al. 2022, section 3.1). The lse's own gradient enters there with its sign
turned.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.host import power_of_two

ROWS = 32  # at head_dim 128, 32 elements of each a thread
WARPS = 4


@triton.jit
def delta_kernel(
    out, dout,  # (batch, seqlen, nheads, head_dim_v) by strides
    dlse,  # float32 (batch, nheads, seqlen) by strides, when HAS_DLSE
    delta,  # float32 (batch, nheads, seqlen), contiguous
    seqlen, nheads, out_b, out_s, out_h, dout_b, dout_s, dout_h, dlse_b, dlse_h, dlse_s,
    HEAD_DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr, HAS_DLSE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head a program. Heads next to each other in the grid read memory next to each other."""
    blocks = tl.cdiv(seqlen, BLOCK_M)
    h, rest = tl.program_id(0) % nheads, tl.program_id(0) // nheads
    m, b = rest % blocks * BLOCK_M, rest // blocks
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    i = m + tl.arange(0, BLOCK_M)
    i64 = i.to(tl.int64)
    d = tl.arange(0, BLOCK_DV)
    inside = (i[:, None] < seqlen) & (d[None, :] < HEAD_DIM_V)
    out += b64 * out_b + h64 * out_h
    dout += b64 * dout_b + h64 * dout_h
    one = tl.load(out + (i64 * out_s)[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)  # [M, DV]
    other = tl.load(dout + (i64 * dout_s)[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(one * other, 1)
    if HAS_DLSE:
        total -= tl.load(dlse + b64 * dlse_b + h64 * dlse_h + i64 * dlse_s, mask=i < seqlen, other=0.0).to(tl.float32)
    tl.store(delta + (b64 * nheads + h64) * seqlen + i, total, mask=i < seqlen)


def arguments_of(out: Tensor, dout: Tensor, dlse: Tensor | None, delta: Tensor) -> dict[str, Any]:
    """The kernel's arguments by name, those of `make_delta`."""
    packed = out.dim() == 3
    strides = {f"{n}_{d}": 0 if packed and d == "b" else t.stride({"b": 0, "s": -3, "h": -2}[d])
               for n, t in (("out", out), ("dout", dout)) for d in "bsh"}  # fmt: skip
    for d, place in {"b": 0, "h": -2, "s": -1}.items():
        strides[f"dlse_{d}"] = 0 if dlse is None or packed and d == "b" else dlse.stride(place)
    return dict(
        strides, out=out, dout=dout, dlse=delta if dlse is None else dlse, delta=delta, seqlen=out.shape[-3],
        nheads=out.shape[-2], HEAD_DIM_V=out.shape[-1], BLOCK_DV=power_of_two(out.shape[-1]),
        HAS_DLSE=dlse is not None, BLOCK_M=ROWS,
    )  # fmt: skip


def make_delta(out: Tensor, dout: Tensor, dlse: Tensor | None) -> Tensor:
    """float32 (batch, nheads, seqlen), packed (nheads, total).

    Args:
        out, dout: (batch, seqlen, nheads, head_dim_v) or (total, nheads, head_dim_v), last stride 1.
        dlse: as the result, any strides; or None.
    """
    *batch, seqlen, nheads, _ = out.shape
    delta = out.new_empty((*batch, nheads, seqlen), dtype=torch.float32)
    programs = triton.cdiv(seqlen, ROWS) * nheads * (batch[0] if batch else 1)
    if programs:
        delta_kernel[(programs,)](**arguments_of(out, dout, dlse, delta), num_warps=WARPS)
    return delta
