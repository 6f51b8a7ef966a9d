"""Hugging Face transformers on this package's kernels: attention by name, or whole models.

After `register()`, `from_pretrained(..., attn_implementation="undivided")` takes our attention. `undivided.accelerate`
does more, to a model that is already loaded: the biases, norms and feed-forward blocks too. `undivided.restore` undoes
it.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from ..dispatch import BACKENDS
from .hf_models import NAME, check_version, refusal, table_objection
from .hf_report import Report

__all__ = ["NAME", "Report", "accelerate", "register", "restore"]


def register(backend: str = "auto") -> None:
    """Makes attn_implementation="undivided" known to transformers: its attention function and its mask function.

    Padding reaches the kernels as lengths, or as one row of keys where it is not on the right; causality and sliding
    windows as numbers. A query that sees no key at all gives 0, where eager attention gives the mean of the values. A
    model that never calls transformers' attention interface is refused when it is made, and so is one that picks the
    keys of each query, as DeepSeek-V3.2 does, or takes the classes of its attention from a table, as SAM does, which
    `undivided.accelerate` takes.

    Args:
        backend: "auto", or the one backend to use, for all models of the process.

    Raises:
        ImportError: transformers is missing or its version is not supported; the text names the versions.
        ValueError: the backend is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; allowed: {', '.join(BACKENDS)}")
    check_version()
    from transformers import AttentionInterface, AttentionMaskInterface

    from .hf_attention import SETTINGS, undivided_attention
    from .hf_masks import undivided_mask

    SETTINGS["backend"] = backend
    AttentionInterface.register(NAME, undivided_attention)
    AttentionMaskInterface.register(NAME, undivided_mask)
    _refuse_when_made()


def _refuse_when_made() -> None:
    """transformers takes any registered name for any model; a model that would not call ours must not run unnoticed."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.get_correct_attn_implementation
    if getattr(original, "refuses", None) == NAME:
        return

    @functools.wraps(original)
    def checked(self: Any, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention == NAME:
            why = refusal(type(self))
            if why is None and is_init_check:
                why = table_objection(type(self))  # type: ignore[arg-type]
            if why is not None:
                raise ValueError(why)
        return original(self, requested_attention, is_init_check)

    checked.refuses = NAME  # type: ignore[attr-defined]
    PreTrainedModel.get_correct_attn_implementation = checked  # type: ignore[method-assign]


def accelerate(model: nn.Module, backend: str = "auto") -> Report:
    """Puts a loaded transformers model onto our kernels, in place, and says what it did.

    Attention in every part of the model; T5's relative bias inside the kernel, so that no tensor of seqlen_q x seqlen_k
    is made; layer and RMS norms, with the residual sum where a layer ends in one; feed-forward blocks; on a CPU linear
    layers and dropout. Each is replaced on single modules, never on a class: weights, state dict, config and other
    models stay as they are, and what a hook, an adapter or a dtype makes different at a call runs as before. A
    feed-forward block that drops between its layers while training does so too.

    On a CPU the encoders and decoders of T5, BART and their relatives leave padding on the right out, where a mask says
    that it is some: what their last block gives there is 0, which masks hide. In training labels of -100 at the end of
    a row say it too: the loss and all gradients are the same, but the logits at these places are no predictions. In
    generation, and where a decoder keeps its cache, nothing is left out. Dropout draws from torch's default generator,
    but other numbers than torch's own. `undivided.keep_freed_memory` makes training on a CPU faster still.

    Args:
        model: on the device and in the dtype where it will run: a part for which no kernel runs there is left. A part
            that computes its attention itself is left as well.
        backend: "auto", or the one backend to use, for all models of the process.

    Returns:
        A `Report`; `str(report)` is a table. A second call changes the model anew.

    Raises:
        TypeError: it is no transformers model. ValueError: a model that `register` refuses.
        ImportError: as `register`.
    """
    register(backend)
    from .hf_accelerate import change

    return change(model)


def restore(model: nn.Module) -> None:
    """Undoes `accelerate`; a model that was not accelerated stays as it is."""
    check_version()
    from .hf_accelerate import undo

    undo(model)
