"""Hugging Face's feed-forward blocks on ours, for blocks that are a module of their own, and linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import ops
from ..ops.linear import linear
from . import hf_dropout
from .hf_attention import SETTINGS
from .hf_patch import known_class, untouched

# transformers' activations by class. The fast and accurate ones are other ways to write gelu's tanh form.
ACTIVATIONS = {
    "ReLU": "relu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "SiLU": "silu",
    "SiLUActivation": "silu",
}


@dataclass(frozen=True)
class Names:
    """What the parts of a block are called."""

    w_in: str
    w_out: str
    activation: str
    w_gate: str | None = None
    dropout: str | None = None  # between the activation and w_out

    def layers(self, block: nn.Module) -> list[nn.Module]:
        return [getattr(block, name) for name in (self.w_in, self.w_out, self.w_gate) if name is not None]


PLAIN = Names("wi", "wo", "act", dropout="dropout")
GATED = Names("wi_0", "wo", "act", w_gate="wi_1", dropout="dropout")
PROJECTIONS = Names("gate_proj", "down_proj", "act_fn", w_gate="up_proj")
TWO_LAYERS = Names("fc1", "fc2", "activation_fn")

BLOCKS: dict[str, Names] = {
    "T5DenseActDense": PLAIN,
    "T5DenseGatedActDense": GATED,
    "MT5DenseActDense": PLAIN,
    "MT5DenseGatedActDense": GATED,
    "UMT5DenseActDense": PLAIN,
    "UMT5DenseGatedActDense": GATED,
    "SwitchTransformersDenseActDense": PLAIN,
    "NllbMoeDenseActDense": Names("fc1", "fc2", "act", dropout="dropout"),
    "T5GemmaMLP": Names("gate_proj", "down_proj", "act_fn", w_gate="up_proj", dropout="dropout"),
    "LlamaMLP": PROJECTIONS,
    "MistralMLP": PROJECTIONS,
    "Qwen2MLP": PROJECTIONS,
    "Qwen3MLP": PROJECTIONS,
    "Gemma2MLP": PROJECTIONS,
    "MoonshineEncoderMLP": TWO_LAYERS,
    "ViTMLP": TWO_LAYERS,
    "Florence2VisionMLP": TWO_LAYERS,
}
# What is no block of ours, and why.
LEFT: dict[str, str | None] = {
    "MoonshineDecoderMLP": "its gate has a bias, which the op has not",
    "GptOssExperts": "a mixture of experts has no kernel",
    "GptOssMLP": "the router stays",
    "SwitchTransformersSparseMLP": "the router stays; its experts are blocks of their own",
    "NllbMoeSparseMLP": "the router stays; its experts are blocks of their own",
    "SwitchTransformersExperts": None,  # nothing but a list of them
    "NllbMoeExperts": None,
}
UNKNOWN = ("MLP", "Mlp", "DenseActDense", "FeedForward", "FFN", "Experts")  # how the names of other blocks end


class FeedForward:
    """Lends its forward to the blocks of `BLOCKS`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        names = BLOCKS[known_class(self)]
        layers = names.layers(self)
        drops = names.dropout is not None and drops_now(getattr(self, names.dropout))
        activation = getattr(self, names.activation)
        if drops or not is_known(activation) or not all(is_plain(layer, x) for layer in layers):
            return type(self).forward(self, x)
        return feed_forward(x, layers, activation)


def drops_now(dropout: Any) -> bool:
    """Whether it does anything; what is no plain dropout may."""
    plain = type(dropout) is nn.Dropout and untouched(dropout, hf_dropout.Dropout.forward)
    return not plain or (dropout.training and dropout.p > 0)


def is_known(activation: Any) -> bool:
    """Whether the op does all that a call of an activation does."""
    return known_class(activation) in ACTIVATIONS and untouched(activation)


class Linear:
    """Lends its forward to torch's Linear. `self` is the module."""

    def forward(self: Any, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def is_plain(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer is torch's Linear in x's dtype, so that its weight says all that it does."""
    return type(layer) is nn.Linear and layer.weight.dtype == x.dtype and untouched(layer, Linear.forward)


def feed_forward(x: Tensor, layers: list[Any], activation: nn.Module) -> Tensor:
    """layers: w_in, w_out and maybe w_gate, all plain; activation: a known one."""
    w_in, w_out, *gates = layers
    gate = gates[0].weight if gates else None
    name = ACTIVATIONS[known_class(activation)]
    return ops.feed_forward(
        x, w_in.weight, w_in.bias, w_out.weight, w_out.bias, name, gate, backend=SETTINGS["backend"]
    )


def objection(block: nn.Module) -> str | None:
    """Why a block of `BLOCKS` stays as it is; None where ours replaces it."""
    names = BLOCKS[known_class(block)]
    activation = getattr(block, names.activation)
    layers = names.layers(block)
    if known_class(activation) not in ACTIVATIONS:
        return f"the activation {type(activation).__name__} has no kernel"
    if other := next((type(layer).__name__ for layer in layers if type(layer) is not nn.Linear), None):
        return f"a layer is a {other}, not torch's Linear"
    if names.w_gate is not None and getattr(block, names.w_gate).bias is not None:
        return "its gate has a bias, which the op has not"
    return None


def why_left(block: nn.Module) -> str | None:
    """Why a module that is not in `BLOCKS` stays as it is; None where it is no feed-forward block."""
    unknown = type(block).__name__.endswith(UNKNOWN)
    return LEFT.get(known_class(block), "a block that is not known" if unknown else None)
