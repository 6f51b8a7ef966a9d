"""Gradient checkpointing of layers whose forward is replaced.

transformers once checkpointed the call of a layer, with whatever forward the layer has (5.15 does); 5.23 checkpoints
the forward of its class, so that what stands in its place has to do it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .hf_cache import CACHE

CHECKPOINTS_CALLS = "__call__" in vars(GradientCheckpointingLayer)


def checkpointed(module: nn.Module, forward: Callable) -> Callable:
    """What to put in the place of a module's forward: `forward`, checkpointed where the original is."""
    original = isinstance(module, GradientCheckpointingLayer) and not CHECKPOINTS_CALLS
    return wrapped(forward) if original else forward


@cache  # all layers of a kind have the same function, by which one knows that a layer is ours
def wrapped(forward: Callable) -> Callable:
    @wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return forward(self, *args, **kwargs)
        cached = [name for name in ("use_cache", CACHE) if kwargs.get(name) not in (None, False)]
        if cached:  # the second run would write into it again; transformers leaves it out likewise
            logging.get_logger(__name__).warning_once(f"gradient checkpointing leaves out {' and '.join(cached)}")
            kwargs.update(dict.fromkeys(cached))
        return self._gradient_checkpointing_func(partial(forward, self, **kwargs), *args)

    run.recipe = (wrapped, forward)  # type: ignore[attr-defined]
    return run
