"""T5 and its relatives: the relative bias in the kernel, and blocks with the residual sums in the norms.

A stack hands its table from layer to layer, and no score-sized tensor exists.

The original makes (1, nheads, seqlen_q, seqlen_k) numbers in the first layer of a stack and gives them to the others
without a look; for cross attention, which has no bias, it makes as many zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..reference import RelativeBias
from .hf_attention import PositionBias
from .hf_models import NAME
from .hf_norms import add_norm
from .hf_packing import without_padding
from .hf_patch import Patches, known_class, untouched

ATTENTION = ("T5Attention", "MT5Attention", "UMT5Attention", "SwitchTransformersAttention")


def adapted(table: nn.Module) -> bool:
    """Whether a table is more than its weights say."""
    return type(table) is not nn.Embedding or not untouched(table)


class SelfAttention:
    """Lends its method to an attention that has a table. `self` is the module."""

    def compute_bias(
        self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
    ) -> Any:
        table = self.relative_attention_bias
        if adapted(table) or self.config._attn_implementation != NAME:
            return type(self).compute_bias(self, query_length, key_length, device, past_seen_tokens)
        # The parameter itself: under reentrant checkpointing a copy made in one block would have no gradient in others.
        bias = RelativeBias(table.weight, self.relative_attention_max_distance, not self.is_decoder)
        return PositionBias(bias, past_seen_tokens)


class CrossAttention:
    """Lends its method to an attention without a table. `self` is the module."""

    def compute_bias(
        self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
    ) -> PositionBias | Tensor:
        if self.config._attn_implementation != NAME:
            return torch.zeros(1, self.n_heads, query_length, key_length, device=device, dtype=self.q.weight.dtype)
        return PositionBias(None)


def is_compact(attention: Any) -> bool:
    own = vars(attention).get("compute_bias")
    return getattr(own, "__func__", None) is SelfAttention.compute_bias and not adapted(
        attention.relative_attention_bias
    )


def patch(attention: Any, patches: Patches) -> str | None:
    """Keeps the bias of one attention module compact; a sentence where that is not possible."""
    if attention.has_relative_attention_bias:
        exact = attention.relative_attention_num_buckets // (2 if attention.is_decoder else 4)
        if not 0 < exact < attention.relative_attention_max_distance:
            return f"{exact} buckets of one distance each leave none up to {attention.relative_attention_max_distance}"
        return patches.method(attention, "compute_bias", SelfAttention.compute_bias)
    # Before transformers 5.18 UMT5 does not say what is causal, and without a table it has cross attention only.
    if attention.is_decoder and not getattr(
        attention, "is_causal", False
    ):  # it then asks compute_bias instead of making zeros
        objection = patches.method(attention, "compute_bias", CrossAttention.compute_bias)
        if objection is None:
            patches.attribute(attention, "has_relative_attention_bias", True)
        return objection
    return None


def takes(block: Any, x: Tensor) -> bool:
    """Whether the fused forward runs.

    It does not call the parts as modules, which is where transformers picks attention weights up; and the original
    clamps float16 between them.
    """
    return x.dtype != torch.float16 and all(known_class(part) and untouched(part) for part in block.layer)


def takes_packed(block: Any, x: Tensor) -> bool:
    """Whether it runs on tokens without padding, for which a dense bias has no place."""
    attention = block.layer[0].SelfAttention
    return takes(block, x) and not (attention.has_relative_attention_bias and not is_compact(attention))


def finish(last: Any, attended: Tensor, x: Tensor) -> Tensor:
    """The last part of a block, with the sum before it. What Switch calls `mlp` may be experts behind a router."""
    y, x = add_norm(last.layer_norm, attended, x)
    inner = last.mlp if hasattr(last, "mlp") else last.DenseReluDense
    return x + last.dropout(inner(y))


class Block:
    """Lends its forward to the blocks of `BLOCKS`. Each part is x + dropout(f(norm(x))): sum and next norm are one."""

    @without_padding
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_bias: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        encoder_decoder_position_bias: Any = None,
        **kwargs: Any,  # the cache is one of them
    ) -> tuple[Tensor, Any, Any]:
        x, cross_bias = hidden_states, encoder_decoder_position_bias
        if not takes(self, x):
            given = (attention_mask, position_bias, encoder_hidden_states, encoder_attention_mask, cross_bias)
            return type(self).forward(self, x, *given, **kwargs)
        first, *others, last = self.layer
        attended, bias, _ = first.SelfAttention(
            first.layer_norm(x), mask=attention_mask, position_bias=position_bias, **kwargs
        )
        attended, new_cross_bias = first.dropout(attended), None
        if others and encoder_hidden_states is not None:
            cross = others[0]
            y, x = add_norm(cross.layer_norm, attended, x)
            kwargs.update(mask=encoder_attention_mask, key_value_states=encoder_hidden_states)
            attended, new_cross_bias, _ = cross.EncDecAttention(y, position_bias=cross_bias, **kwargs)
            attended = cross.dropout(attended)
        return finish(last, attended, x), bias, new_cross_bias


class UMT5Block:
    """The same for UMT5, whose layers have a table each, so that no bias is handed on."""

    @without_padding
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        **kwargs: Any,  # the cache is one of them
    ) -> Tensor:
        x, memory = hidden_states, dict(encoder_hidden_states=encoder_hidden_states)
        if not takes(self, x):
            memory["encoder_attention_mask"] = encoder_attention_mask
            result: Tensor = type(self).forward(self, x, attention_mask, **memory, **kwargs)
            return result
        first, *others, last = self.layer
        attended, _ = first.SelfAttention(first.layer_norm(x), attention_mask=attention_mask, **kwargs)
        attended = first.dropout(attended)
        if others and encoder_hidden_states is not None:
            cross = others[0]
            y, x = add_norm(cross.layer_norm, attended, x)
            attended, _ = cross.EncDecAttention(y, attention_mask=encoder_attention_mask, **memory, **kwargs)
            attended = cross.dropout(attended)
        return finish(last, attended, x)


# The class of a block by name: what lends it a forward.
BLOCKS: dict[str, type] = {
    "T5Block": Block,
    "MT5Block": Block,
    "SwitchTransformersBlock": Block,
    "UMT5Block": UMT5Block,
}
# Stacks that can do without padding. In Switch's, tokens compete for a place at an expert within their own row.
STACKS = ("T5Block", "MT5Block", "UMT5Block")
