"""The feed-forward network as it is defined."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision


def activate(x: Tensor, activation: str) -> Tensor:
    """relu, gelu (exact), gelu_tanh or silu."""
    if activation == "relu":
        return torch.relu(x)
    if activation == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if activation == "gelu_tanh":
        return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if activation == "silu":
        return x * torch.sigmoid(x)
    raise ValueError(f"activation={activation!r} is unknown; allowed: relu, gelu, gelu_tanh, silu")


@full_precision
def feed_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None = None,
    activation: str = "gelu",
    w_gate: Tensor | None = None,
) -> Tensor:
    """The definition of `undivided.feed_forward`; computed in float32, or float64 for float64 input."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    wide = [None if t is None else t.to(dtype) for t in (x, w_in, b_in, w_out, b_out, w_gate)]
    x_, w_in_, b_in_, w_out_, b_out_, w_gate_ = wide
    hidden = activate(F.linear(x_, w_in_, b_in_), activation)  # type: ignore[arg-type]
    if w_gate_ is not None:
        hidden = hidden * F.linear(x_, w_gate_)  # type: ignore[arg-type]
    return F.linear(hidden, w_out_, b_out_).to(x.dtype)  # type: ignore[arg-type]
