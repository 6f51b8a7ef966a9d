"""Layers whose feed-forward block is a module of its own: what is left to fuse is the residual sums, in the norms.

Each class here lends its forward to single modules of the families in `LAYERS`, whose originals are the same line by
line; `self` is the module.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .hf_cache import CACHE, OLD
from .hf_norms import add_norm


class SelfAttentionLayer:
    """Llama: x + f(norm(x)), with a feed-forward block that is a module of its own."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,  # the cache is one of them
    ) -> Tensor:
        kwargs |= dict(attention_mask=attention_mask, position_ids=position_ids)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        y, x = add_norm(self.post_attention_layernorm, attended, hidden_states)
        return x + self.mlp(y)


class ViTLayer:
    """ViT: x + dropout(f(norm(x)))."""

    def forward(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        y = self.layernorm_before(hidden_states)
        attended, _ = self.attention(y, attention_mask=attention_mask, **kwargs)
        y, x = add_norm(self.layernorm_after, self.dropout(attended), hidden_states)
        return x + self.dropout(self.mlp(y))


class MoonshineDecoder:
    """Moonshine: x + f(norm(x)), with cross attention where there is an encoder."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        position_ids: Tensor | None = None,
        encoder_position_ids: Tensor | None = None,
        *,
        use_cache: bool | None = False,
        position_embeddings: Any = None,
        encoder_position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        x, cache = hidden_states, {CACHE: kwargs.pop(CACHE, None), "use_cache": use_cache}
        places = dict(position_ids=position_ids, position_embeddings=position_embeddings)
        y = self.input_layernorm(x)
        attended, _ = self.self_attn(y, attention_mask=attention_mask, **places, **cache, **kwargs)
        if encoder_hidden_states is not None:
            y, x = add_norm(self.post_attention_layernorm, attended, x)
            words = dict(key_value_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
            attended, _ = self.encoder_attn(y, **words, **cache)
        y, x = add_norm(self.final_layernorm, attended, x)
        return x + self.mlp(y)


class T5GemmaLayer:
    """T5Gemma, on both sides: x + dropout(norm(f(norm(x)))). The outer norm has no sum before it, the inner one has."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Any = None,  # by its place, or by either name
        use_cache: bool | None = False,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        x, both = hidden_states, kwargs.pop(OLD, cache)
        kwargs |= {"use_cache": use_cache, CACHE: None if both is None else both.self_attention_cache}
        own = dict(attention_mask=attention_mask, position_ids=position_ids, position_embeddings=position_embeddings)
        attended, _ = self.self_attn(self.pre_self_attn_layernorm(x), **own, **kwargs)
        attended = self.dropout(self.post_self_attn_layernorm(attended))
        if hasattr(self, "cross_attn"):
            y, x = add_norm(self.pre_cross_attn_layernorm, attended, x)
            words = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
            attended, _ = self.cross_attn(y, **words, **(kwargs | {CACHE: both}))
            attended = self.dropout(self.post_cross_attn_layernorm(attended))
        y, x = add_norm(self.pre_feedforward_layernorm, attended, x)
        return x + self.dropout(self.post_feedforward_layernorm(self.mlp(y)))


# The class of a layer by name: what lends it a forward.
LAYERS: dict[str, type] = {
    "LlamaDecoderLayer": SelfAttentionLayer,
    "MistralDecoderLayer": SelfAttentionLayer,
    "MoonshineEncoderLayer": SelfAttentionLayer,
    "Qwen2DecoderLayer": SelfAttentionLayer,
    "Qwen3DecoderLayer": SelfAttentionLayer,
    "ViTLayer": ViTLayer,
    "MoonshineDecoderLayer": MoonshineDecoder,
    "T5GemmaEncoderLayer": T5GemmaLayer,
    "T5GemmaDecoderLayer": T5GemmaLayer,
}
# What each of them does, for the report.
GAINS: dict[type, str] = {
    SelfAttentionLayer: "norm with the residual sum",
    ViTLayer: "norm with the residual sum",
    MoonshineDecoder: "norms with the residual sum",
    T5GemmaLayer: "norms with the residual sum",
}
