"""The feed-forward network with its weights."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops

# name: (activation of the op, whether a gate multiplies it)
ACTIVATIONS = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "swiglu": ("silu", True),
    "geglu": ("gelu", True),
    "gelu_tanh": ("gelu_tanh", False),
    "silu": ("silu", False),
    "geglu_tanh": ("gelu_tanh", True),
}


class FeedForward(nn.Module):
    """Two linear maps with an activation between them (Vaswani et al. 2017, section 3.3).

    swiglu, geglu and geglu_tanh multiply the activation by a third map and have no biases (Shazeer 2020).
    `bias=False` leaves those of the other activations out.

    Raises:
        ValueError: the activation is unknown, or a gated one is asked to have biases.
    """

    def __init__(self, d_model: int, d_ff: int, activation: str = "relu", bias: bool | None = None) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
        self.activation, gated = ACTIVATIONS[activation]
        if gated and bias:
            raise ValueError(f"activation={activation!r} is gated and has no biases, bias={bias} was given")
        bias = not gated if bias is None else bias
        self.w_in = nn.Linear(d_model, d_ff, bias=bias)
        self.w_out = nn.Linear(d_ff, d_model, bias=bias)
        self.w_gate = nn.Linear(d_model, d_ff, bias=False) if gated else None

    def forward(self, x: Tensor) -> Tensor:  # (..., d_model)
        gate = None if self.w_gate is None else self.w_gate.weight
        return ops.feed_forward(
            x, self.w_in.weight, self.w_in.bias, self.w_out.weight, self.w_out.bias, self.activation, gate
        )
