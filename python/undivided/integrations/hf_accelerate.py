"""Puts a loaded Hugging Face model onto our kernels, module by module, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from ..dispatch import Call, FeedForwardCall, NormCall, first_willing
from ..ops.feed_forward_table import FEED_FORWARD
from ..ops.norm_table import RMS_NORM
from ..products import FLOATS
from . import hf_dropout, hf_feed_forward, hf_layers, hf_norms, hf_packing, hf_t5
from .hf_attention import SETTINGS
from .hf_checkpointing import checkpointed
from .hf_models import NAME, refusal
from .hf_patch import Patches, known_class
from .hf_report import Report

# The blocks of stacks by class, and whether one runs on tokens without padding.
STACKS = (
    (hf_t5.STACKS, hf_t5.takes_packed),
    (hf_layers.STACKS, hf_layers.takes_packed),
)
TEACHER = {"labels", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds"}  # words of a forward
KEPT = "_undivided_patches"  # where a model keeps what undoes the change


def change(model: nn.Module) -> Report:
    """Changes a model in place; what it was before is kept on it."""
    check_model(model)
    undo(model)
    patches, report = Patches(), Report(type(model).__name__)
    setattr(model, KEPT, patches)
    left_whole = set_attention(model, patches, report)
    for module in model.modules():
        if id(getattr(module, "config", None)) not in left_whole:
            change_attention(module, patches, report)
        change_rest(module, patches, report)
    for module in model.modules():
        change_stack(module, patches, report)
    for module in model.modules():
        change_loss(module, patches, report)
    return report


def undo(model: nn.Module) -> None:
    patches = vars(model).pop(KEPT, None)
    if patches is not None:
        patches.undo()


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module) or not any(isinstance(part, PreTrainedModel) for part in model.modules()):
        raise TypeError(
            f"a {type(model).__name__} was given; allowed: a transformers model, or a module with one in it"
        )
    if isinstance(model, PreTrainedModel) and (why := refusal(type(model))) is not None:
        raise ValueError(why)


def set_attention(model: nn.Module, patches: Patches, report: Report) -> set[int]:
    """Names our attention in every config of the model; returns the ids of the configs that keep theirs.

    transformers' set_attn_implementation passes by parts that share the class of the whole model's config.
    """
    left = set()
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and (why := refusal(type(part))) is not None:
            report.add(part, "attention", why)
            left.add(id(part.config))
    seen = set(left)
    for part in model.modules():
        config = getattr(part, "config", None)
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            patches.attribute(config, "_attn_implementation_internal", NAME)
    return left


@cache
def calls_interface(kind: Any) -> bool:
    """Whether an attention class asks transformers' interface for the function that it calls."""
    try:
        return "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(kind.forward)
    except (OSError, TypeError, AttributeError):
        return False


def change_attention(module: nn.Module, patches: Patches, report: Report) -> None:
    name = type(module).__name__
    if calls_interface(type(module)):  # type: ignore[arg-type]
        report.add(module, "attention", None)
        if known_class(module) in hf_t5.ATTENTION:
            objection = hf_t5.patch(module, patches)
            if objection is not None or module.has_relative_attention_bias:
                report.add(module, "bias in the kernel", objection)
    elif name.endswith("Attention") and not any(type(part).__name__.endswith("Attention") for part in inside(module)):
        report.add(module, "attention", "it does not call the attention interface")


def inside(module: nn.Module) -> list[nn.Module]:
    return list(module.modules())[1:]


def change_rest(module: nn.Module, patches: Patches, report: Report) -> None:
    """Norms, feed-forward blocks, the layers that write both inline, linear layers and dropout."""
    name = known_class(module)
    lender = hf_norms.lender(module)
    if lender is not None:
        objection = lender if isinstance(lender, str) else no_kernel(module, RMS_NORM)
        if not isinstance(lender, str) and objection is None:
            objection = patches.method(module, "forward", lender.forward)  # type: ignore[attr-defined]
        report.add(module, "norm", objection)
    elif name in hf_feed_forward.BLOCKS:
        objection = hf_feed_forward.objection(module) or no_kernel(module, FEED_FORWARD)
        objection = objection or patches.method(module, "forward", hf_feed_forward.FeedForward.forward)
        report.add(module, "feed-forward block", objection)
    elif name in hf_layers.LAYERS:
        method, part = hf_layers.LAYERS[name]
        objection = no_kernel(module, RMS_NORM) or no_kernel(module, FEED_FORWARD)
        objection = objection or patches.method(module, method, replacement(module, part, method))
        report.add(module, hf_layers.GAINS[part], objection)
    elif name in hf_t5.BLOCKS:
        forward = replacement(module, hf_t5.BLOCKS[name], "forward")
        objection = no_kernel(module, RMS_NORM) or patches.method(module, "forward", forward)
        report.add(module, "norms with the residual sum", objection)
    elif type(module) is nn.Linear:
        if module.weight.dtype in FLOATS and module.weight.device.type == "cpu":
            report.add(module, "linear layer", patches.method(module, "forward", hf_feed_forward.Linear.forward))
    elif type(module) is nn.Dropout:
        report.add(module, "dropout", patches.method(module, "forward", hf_dropout.Dropout.forward))
    elif (why := hf_feed_forward.why_left(module)) is not None:
        report.add(module, "feed-forward block", why)


def replacement(module: nn.Module, part: type, method: str) -> Callable:
    """What a class lends to a layer; checkpointed where the layer's own would be."""
    lent: Callable = getattr(part, method)
    return checkpointed(module, lent) if method == "forward" else lent


def change_stack(stack: nn.Module, patches: Patches, report: Report) -> None:
    """The padding of an encoder or decoder all of whose blocks have our forward."""
    for blocks in stack.children():
        if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
            continue
        for kinds, takes in STACKS:
            if all(known_class(block) in kinds for block in blocks):
                ours = all(patches.replaced(block, "forward") for block in blocks)
                if ours:
                    hf_packing.patch(stack, list(blocks), takes, patches)
                report.add(stack, "stack without padding", None if ours else "not all of its blocks were replaced")


def change_loss(model: nn.Module, patches: Patches, report: Report) -> None:
    """What a model need not compute in training, since its labels say that no loss is there."""
    if not isinstance(model, PreTrainedModel) or not TEACHER.issubset(
        inspect.signature(type(model).forward).parameters
    ):
        return
    decoder = model.get_decoder()
    if any(hf_packing.KEPT in vars(module) for module in decoder.modules()):
        objection = patches.method(model, "forward", hf_packing.by_labels(type(model)))  # type: ignore[arg-type]
        report.add(model, "training without what is behind the labels", objection)


def no_kernel(module: nn.Module, table: Any) -> str | None:
    """A sentence where no kernel takes the module's weights, so that torch's own code is better than the reference."""
    weight = next(module.parameters())
    device, dtype = weight.device.type, str(weight.dtype).removeprefix("torch.")
    call: Call
    if table is FEED_FORWARD:
        call = FeedForwardCall(device, dtype, rows=1, d_model=1, d_ff=1)
    else:
        call = NormCall(device, dtype, rows=1, columns=1)
    backend = SETTINGS["backend"]
    row = first_willing(table, call, backend)
    if row is None or (row.name == "reference" and backend == "auto"):
        return f"backend={backend!r} has no kernel for {dtype} on {device!r}"
    return None
