"""The layers of BART's relatives and of BERT with the residual sums in the norms and the feed-forward blocks fused.

These layers write both inline, so that the whole forward is replaced. Each class here lends its forward to single
modules of the families in `LAYERS`, whose originals are the same line by line; `self` is the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import hf_dropout, hf_norm_layers
from .hf_feed_forward import feed_forward, is_known, is_plain
from .hf_norms import add_norm
from .hf_packing import without_padding
from .hf_patch import known_class, untouched

POST_NORM = ("Bart", "BlenderbotSmall", "Marian", "PLBart")
PRE_NORM = ("Blenderbot", "M2M100", "MBart", "Pegasus", "Speech2Text", "Whisper")
SIDES = ("EncoderLayer", "DecoderLayer")
STACKS = tuple(name + side for name in POST_NORM + PRE_NORM for side in SIDES)  # that can do without padding


def drop(layer: Any, x: Tensor) -> Tensor:
    return hf_dropout.dropout(x, layer.dropout, layer.training)


def inner(layer: Any, x: Tensor) -> Tensor:
    """fc2(dropout(activation(fc1(x))))."""
    drops = layer.training and layer.activation_dropout > 0
    if not drops and is_known(layer.activation_fn) and all(is_plain(fc, x) for fc in fcs(layer)):
        return feed_forward(x, fcs(layer), layer.activation_fn)
    x = hf_dropout.dropout(layer.activation_fn(layer.fc1(x)), layer.activation_dropout, layer.training)
    return layer.fc2(x)


def fcs(layer: Any) -> list[nn.Module]:
    return [layer.fc1, layer.fc2]


def needs_clamp(x: Tensor) -> bool:
    """The originals clamp float16 between the parts that are one here."""
    return x.dtype == torch.float16


def takes_packed(layer: Any, x: Tensor) -> bool:
    return not needs_clamp(x)


def decoder(layer: Callable) -> Callable:
    """The forward of a decoder's layer from layer(self, x, own, cross).

    own: what self-attention is called with; cross: what cross attention is, None where there is no encoder.
    """

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        *,
        use_cache: bool | None = True,
        **kwargs: Any,  # the cache is one of them
    ) -> Tensor:
        own, cross = dict(attention_mask=attention_mask, **kwargs), None
        if encoder_hidden_states is not None:
            cross = dict(key_value_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **kwargs)
        result: Tensor = layer(self, hidden_states, own, cross)
        return result

    forward.__qualname__ = layer.__qualname__  # by which pickle finds it
    return forward


class PostNormEncoder:
    """BART: norm(x + f(x))."""

    @without_padding
    def forward(self: Any, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Tensor:
        x = hidden_states
        if needs_clamp(x):
            return type(self).forward(self, x, attention_mask, **kwargs)
        attended, _ = self.self_attn(x, attention_mask=attention_mask, **kwargs)
        x, _ = add_norm(self.self_attn_layer_norm, drop(self, attended), x)
        return add_norm(self.final_layer_norm, drop(self, inner(self, x)), x)[0]


class PostNormDecoder:
    """BART, with cross attention where there is an encoder."""

    @without_padding
    @decoder
    def forward(self: Any, x: Tensor, own: dict[str, Any], cross: dict[str, Any] | None) -> Tensor:
        attended, _ = self.self_attn(x, **own)
        x, _ = add_norm(self.self_attn_layer_norm, drop(self, attended), x)
        if cross is not None:
            attended, _ = self.encoder_attn(x, **cross)
            x, _ = add_norm(self.encoder_attn_layer_norm, drop(self, attended), x)
        return add_norm(self.final_layer_norm, drop(self, inner(self, x)), x)[0]


class PreNormEncoder:
    """mBART, Whisper: x + f(norm(x))."""

    @without_padding
    def forward(self: Any, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Tensor:
        x = hidden_states
        if needs_clamp(x):
            return type(self).forward(self, x, attention_mask, **kwargs)
        attended, _ = self.self_attn(self.self_attn_layer_norm(x), attention_mask=attention_mask, **kwargs)
        y, x = add_norm(self.final_layer_norm, drop(self, attended), x)
        return x + drop(self, inner(self, y))


class PreNormDecoder:
    """mBART, Whisper, with cross attention where there is an encoder."""

    @without_padding
    @decoder
    def forward(self: Any, x: Tensor, own: dict[str, Any], cross: dict[str, Any] | None) -> Tensor:
        attended, _ = self.self_attn(self.self_attn_layer_norm(x), **own)
        if cross is not None:
            y, x = add_norm(self.encoder_attn_layer_norm, drop(self, attended), x)
            attended, _ = self.encoder_attn(y, **cross)
        y, x = add_norm(self.final_layer_norm, drop(self, attended), x)
        return x + drop(self, inner(self, y))


class BertOutput:
    """norm(input + dropout(dense(x))): the end of BERT's attention and of its feed-forward block."""

    def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return add_norm(self.LayerNorm, self.dropout(self.dense(hidden_states)), input_tensor)[0]


class BertLayer:
    """The feed-forward block, which BERT keeps in two modules."""

    def feed_forward_chunk(self: Any, attention_output: Tensor) -> Tensor:
        first, last, x = self.intermediate, self.output, attention_output
        ours = (known_class(first), known_class(last)) == ("BertIntermediate", "BertOutput")
        ours = ours and untouched(first) and untouched(last, BertOutput.forward)
        fits = ours and is_known(first.intermediate_act_fn) and is_plain(first.dense, x)
        if not (fits and is_plain(last.dense, x)):
            return type(self).feed_forward_chunk(self, x)
        y = feed_forward(x, [first.dense, last.dense], first.intermediate_act_fn)
        return add_norm(last.LayerNorm, last.dropout(y), x)[0]


# The class of a module by name: (the method to replace, what lends it).
LAYERS: dict[str, tuple[str, type]] = {
    **{f"{name}EncoderLayer": ("forward", PostNormEncoder) for name in POST_NORM},
    **{f"{name}DecoderLayer": ("forward", PostNormDecoder) for name in POST_NORM},
    **{f"{name}EncoderLayer": ("forward", PreNormEncoder) for name in PRE_NORM},
    **{f"{name}DecoderLayer": ("forward", PreNormDecoder) for name in PRE_NORM},
    **{name: ("forward", part) for name, part in hf_norm_layers.LAYERS.items()},
    "BertSelfOutput": ("forward", BertOutput),
    "BertOutput": ("forward", BertOutput),
    "BertLayer": ("feed_forward_chunk", BertLayer),
}
# What each of them does, for the report.
GAINS: dict[type, str] = {
    PostNormEncoder: "feed-forward block, norms with the residual sum",
    PostNormDecoder: "feed-forward block, norms with the residual sum",
    PreNormEncoder: "feed-forward block, norms with the residual sum",
    PreNormDecoder: "feed-forward block, norms with the residual sum",
    **hf_norm_layers.GAINS,
    BertOutput: "norm with the residual sum",
    BertLayer: "feed-forward block",
}
