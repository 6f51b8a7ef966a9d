"""Hugging Face's norms on ours. Each class here lends its forward to single modules; `self` is the module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import ops
from .hf_attention import SETTINGS
from .hf_patch import known_class, untouched


class ScaledNorm:
    """T5's norm and Llama's: x / rms(x) * weight."""

    def forward(self: Any, hidden_states: Tensor) -> Any:
        if hidden_states.dtype != self.weight.dtype:  # the original then returns the wider of the two
            return type(self).forward(self, hidden_states)
        return ops.rms_norm(hidden_states, self.weight, self.variance_epsilon, backend=SETTINGS["backend"])


class WideNorm:
    """GPT-OSS's norm: the same, and x's dtype comes out whatever the weight's."""

    def forward(self: Any, hidden_states: Tensor) -> Any:
        return ops.rms_norm(hidden_states, self.weight, self.variance_epsilon, backend=SETTINGS["backend"])


class OnePlusNorm:
    """Gemma's norm: x / rms(x) * (1 + weight)."""

    def forward(self: Any, x: Tensor) -> Any:
        return ops.rms_norm(x, 1.0 + self.weight.float(), self.eps, backend=SETTINGS["backend"])


class Norm:
    """torch's layer norm."""

    def forward(self: Any, input: Tensor) -> Any:
        if input.dtype != self.weight.dtype:  # autocast decides
            return type(self).forward(self, input)
        return ops.layer_norm(input, self.weight, self.bias, self.eps, backend=SETTINGS["backend"])


# The class of a module by name: what lends it a forward.
NORMS: dict[str, type] = {
    "T5LayerNorm": ScaledNorm,
    "MT5LayerNorm": ScaledNorm,
    "UMT5LayerNorm": ScaledNorm,
    "SwitchTransformersLayerNorm": ScaledNorm,
    "LlamaRMSNorm": ScaledNorm,
    "MistralRMSNorm": ScaledNorm,
    "Qwen2RMSNorm": ScaledNorm,
    "Qwen3RMSNorm": ScaledNorm,
    "GptOssRMSNorm": WideNorm,
    "Gemma2RMSNorm": OnePlusNorm,
    "T5GemmaRMSNorm": OnePlusNorm,
    "LayerNorm": Norm,  # torch's
}


def lender(module: nn.Module) -> type | str | None:
    """What replaces a norm; a sentence where it is a norm that nothing does; None where it is no norm."""
    if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:
        return "a subclass of torch's LayerNorm with a forward of its own"
    if type(module) is nn.LayerNorm:
        if len(module.normalized_shape) != 1 or module.weight is None:
            return "it normalises more than the last dimension, or has no weight"
        return Norm
    if (name := known_class(module)) in NORMS:
        return NORMS[name]
    return "a norm that is not known" if type(module).__name__.endswith("Norm") else None


def add_norm(norm: Any, x: Tensor, residual: Tensor) -> Any:
    """(norm(residual + x), residual + x), in one pass where the norm is torch's, T5's or Gemma's."""
    lent = NORMS.get(known_class(norm))
    if lent in (Norm, ScaledNorm, OnePlusNorm) and x.dtype == residual.dtype and untouched(norm, lent.forward):
        backend = SETTINGS["backend"]
        if lent is OnePlusNorm:
            return ops.rms_norm(x, 1.0 + norm.weight.float(), norm.eps, residual, backend=backend)
        if x.dtype == norm.weight.dtype and lent is Norm:
            return ops.layer_norm(x, norm.weight, norm.bias, norm.eps, residual, backend=backend)
        if x.dtype == norm.weight.dtype:
            return ops.rms_norm(x, norm.weight, norm.variance_epsilon, residual, backend=backend)
    summed = residual + x
    return norm(summed), summed
