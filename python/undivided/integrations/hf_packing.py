"""Encoders without their padding: from the first block of an encoder to its last, all tokens of a batch are one row.

Projections, norms and feed-forward blocks then work on tokens alone. What the last block gives at padding is 0; where
there is a mask, nobody sees it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .hf_masks import KeyMask
from .hf_patch import Patches, untouched

KEPT = "_undivided_encoder"  # where a block keeps the encoder that it is in


@dataclass(eq=False)
class Encoder:
    """The stack that its blocks share. takes(block, x): whether a block's fused forward runs, whatever the mask."""

    stack: Any
    blocks: list[Any]
    takes: Callable[[Any, Tensor], bool]

    def packs(self, mask: Any, x: Tensor, words: dict[str, Any]) -> bool:
        """Whether the first block may take the padding out: none of it is needed, and nobody looks in between."""
        if not isinstance(mask, KeyMask) or mask.packed is None or words.get("output_attentions"):
            return False
        if self.stack.training and getattr(self.stack, "layerdrop", 0.0) > 0:  # the last block might not run
            return False
        own = vars(self.blocks[0]).get("forward")
        lent = getattr(own, "__func__", None)
        return all(untouched(block, lent) and self.takes(block, x) for block in self.blocks)


def without_padding(forward: Callable) -> Callable:
    """Wraps what lends its forward to the blocks of an encoder: forward(self, hidden_states, attention_mask, ...)."""

    @functools.wraps(forward)
    def packed(self: Any, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        encoder, mask, x = vars(self).get(KEPT), attention_mask, hidden_states
        if encoder is None or torch.compiler.is_compiling():  # lengths are not known while a graph is traced
            return forward(self, x, mask, *args, **kwargs)
        if self is encoder.blocks[0]:
            if not encoder.packs(mask, x, kwargs):
                return forward(self, x, mask, *args, **kwargs)
            x = mask.packed.take(x)
        elif not isinstance(mask, KeyMask) or mask.packed is None or x.shape[:2] == (mask.packed.batch, mask.seqlen_q):
            return forward(self, x, mask, *args, **kwargs)
        found = forward(self, x, mask.packed, *args, **kwargs)
        if self is not encoder.blocks[-1]:
            return found
        put_back = mask.packed.put_back
        return put_back(found) if isinstance(found, Tensor) else (put_back(found[0]), *found[1:])

    return packed


def patch(stack: nn.Module, blocks: list[Any], takes: Callable[[Any, Tensor], bool], patches: Patches) -> None:
    encoder = Encoder(stack, blocks, takes)
    for block in blocks:
        patches.attribute(block, KEPT, encoder)
