"""Stacks without their padding: from the first block to its last, all tokens of a batch are one row.

Projections, norms and feed-forward blocks then work on tokens alone. What the last block gives at padding is 0; where
there is a mask, nobody sees it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.checks import readable
from .hf_attention import collects_weights
from .hf_cache import CACHE, OLD
from .hf_masks import KeyMask, PackedMask, Tokens
from .hf_patch import Patches, untouched

KEPT = "_undivided_stack"  # where a block keeps the stack that it is in
NO_LABEL = -100  # of torch's cross entropy: a place without a loss


@dataclass(eq=False)
class Stack:
    """What its blocks share. takes(block, x): whether a block's fused forward runs, whatever the mask."""

    module: Any
    blocks: list[Any]
    takes: Callable[[Any, Tensor], bool]

    def packs(self, mask: Any, x: Tensor, words: dict[str, Any]) -> bool:
        """Whether the first block may take the padding out: none of it is needed, and nobody looks in between."""
        if not isinstance(mask, KeyMask) or mask.packed is None:
            return False
        if words.get("output_attentions") or collects_weights():
            return False
        if self.module.training and getattr(self.module, "layerdrop", 0.0) > 0:  # the last block might not run
            return False
        memory, cache = words.get("encoder_hidden_states"), words.get(CACHE)
        if memory is not None and across(words.get("encoder_attention_mask"), mask.packed.queries, memory) is None:
            return False
        # A model in training makes a cache unless told otherwise; nobody reads it.
        if cache is not None and not (self.module.training and cache.get_seq_length() == 0):
            return False
        own = vars(self.blocks[0]).get("forward")
        lent = getattr(own, "__func__", None)
        return all(untouched(block, lent) and self.takes(block, x) for block in self.blocks)


def across(mask: Any, queries: Tokens, memory: Tensor) -> PackedMask | None:
    """For the mask of cross attention to `memory` (batch, seqlen, d_model); None where it is not known in lengths."""
    if mask is not None and not isinstance(mask, KeyMask):
        return None
    if mask is None or (mask.key_lengths is None and mask.mask is None):
        keys: Tokens | None = Tokens.of(
            torch.full(memory.shape[:1], memory.shape[1], dtype=torch.int32, device="cpu"), memory.shape[1]
        )
    else:
        keys = mask.keys
    return None if keys is None else PackedMask(queries, keys, (None, None))


def without_padding(forward: Callable) -> Callable:
    """Wraps what lends its forward to the blocks of a stack: forward(self, hidden_states, attention_mask, ...).

    A decoder's has encoder_hidden_states, encoder_attention_mask and the cache by their names.
    """
    names = list(inspect.signature(forward).parameters)[3:]  # of args

    @functools.wraps(forward)
    def packed(self: Any, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        stack, mask, x = vars(self).get(KEPT), attention_mask, hidden_states
        if stack is None or torch.compiler.is_compiling():  # lengths are not known while a graph is traced
            return forward(self, x, mask, *args, **kwargs)
        words = dict(zip(names, args, strict=False)) | kwargs
        if self is stack.blocks[0]:
            if not stack.packs(mask, x, words):
                return forward(self, x, mask, *args, **kwargs)
            x = mask.packed.queries.take(x)
        elif not isinstance(mask, KeyMask) or mask.packed is None or mask.packed.queries.pads(x):
            return forward(self, x, mask, *args, **kwargs)
        tokens, memory = mask.packed.queries, words.get("encoder_hidden_states")
        if memory is not None:
            cross = across(words.get("encoder_attention_mask"), tokens, memory)
            assert cross is not None  # the first block has asked
            words.update(encoder_hidden_states=cross.keys.take(memory), encoder_attention_mask=cross)
        if CACHE in words:
            words[CACHE] = None
        found = forward(self, x, mask.packed, **words)
        if self is not stack.blocks[-1]:
            return found
        return tokens.put_back(found) if isinstance(found, Tensor) else (tokens.put_back(found[0]), *found[1:])

    return packed


def patch(module: nn.Module, blocks: list[Any], takes: Callable[[Any, Tensor], bool], patches: Patches) -> None:
    stack = Stack(module, blocks, takes)
    for block in blocks:
        patches.attribute(block, KEPT, stack)


@functools.cache
def by_labels(kind: Any) -> Callable:
    """The forward of a model with a decoder that, in training, leaves out what stands behind a row's last label.

    It has no part in the loss, and causal attention hides it from the rest. The mask of the decoder, which a collator
    of transformers does not make, says so to the stack.
    """
    original = kind.forward
    names = inspect.signature(original)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        bound = names.bind(self, *args, **kwargs)
        given = bound.arguments
        labels, ids = given.get("labels"), given.get("decoder_input_ids")
        inferred = given.get("decoder_attention_mask") is None and given.get("decoder_inputs_embeds") is None
        # One with tokens in it is a prefix, as in prefix tuning, which no label covers.
        cache = given.get(CACHE, kwargs.get(OLD))
        inferred = inferred and (cache is None or cache.get_seq_length() == 0)
        if inferred and isinstance(labels, Tensor) and labels.dim() == 2 and readable(labels):
            kept = labels.ne(NO_LABEL).flip(1).cumsum(1).flip(1) > 0
            if not kept.all() and (ids is None or ids.shape == labels.shape):
                given["decoder_attention_mask"] = kept.long()
        return original(*bound.args, **bound.kwargs)

    forward.recipe = (by_labels, kind)  # type: ignore[attr-defined]
    return forward
