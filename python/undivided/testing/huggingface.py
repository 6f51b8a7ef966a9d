"""Checks of the Hugging Face integration against transformers' eager attention, for tests and `undivided verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from ..integrations.hf_attention import undivided_attention
from ..integrations.huggingface import NAME, accelerate, register
from .huggingface_models import Family
from .tolerance import Verdict, check, largest_error, largest_value

LOGITS, GRADIENTS = 1e-4, 1e-4  # absolute in float32; relative to a parameter's largest gradient
NEW_TOKENS = 8
GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": dict(num_beams=3),
    "static": dict(cache_implementation="static"),
}


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the calls of our attention function by the class that calls."""
    calls: Counter[str] = Counter()

    def spy(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls[type(module).__name__] += 1
        return undivided_attention(module, *args, **kwargs)

    AttentionInterface.register(NAME, spy)
    try:
        yield calls
    finally:
        AttentionInterface.register(NAME, undivided_attention)


@dataclass(frozen=True)
class Place:
    """Where and how the checks run."""

    device: str = "cpu"
    backend: str = "auto"
    accelerated: bool = False

    def inputs(self, family: Family, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        batch = family.inputs()
        return {name: x.to(self.device, dtype if x.is_floating_point() else x.dtype) for name, x in batch.items()}

    def eager(self, family: Family, dtype: torch.dtype = torch.float32) -> nn.Module:
        return family.build("eager", dtype).to(self.device)

    def ours(self, family: Family, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The family's model on our attention alone, or accelerated."""
        register(self.backend)
        if not self.accelerated:
            return family.build(NAME, dtype).to(self.device)
        model = self.eager(family, dtype)
        accelerate(model, self.backend)
        return model


def valid_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(valid positions, classes): what stands on padding is nobody's."""
    logits = model(**inputs).logits
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    return logits if mask is None else logits[mask.bool()]


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """The gradients of a fixed random weighting of the logits, of every parameter that has one."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
    model.zero_grad()
    (logits * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> list[Verdict]:
    """One verdict a parameter, relative to its largest gradient.

    A key's bias shifts all scores of a query alike: its gradient is 0 but for rounding. So a gradient counts as no
    smaller than a thousandth of the largest of the model.
    """
    if got.keys() != expected.keys():
        raise ValueError(f"gradients differ in {sorted(got.keys() ^ expected.keys())}")
    least = 1e-3 * max(map(largest_value, expected.values()))
    return [
        Verdict(f"d {name}", largest_error(got[name], grad) / max(largest_value(grad), least), GRADIENTS)
        for name, grad in expected.items()
    ]


def forward_backward(family: Family, place: Place) -> list[Verdict]:
    """Logits and every gradient in float32, and how often our function was called in one forward pass."""
    inputs, eager, model = place.inputs(family), place.eager(family), place.ours(family)
    expected = valid_logits(eager, inputs)
    with counted() as calls:
        got = valid_logits(model, inputs)
    return [
        Verdict("calls", abs(sum(calls.values()) - family.calls), 0),
        Verdict("logits", largest_error(got, expected), LOGITS),
        *compare_gradients(gradients(model, got), gradients(eager, expected)),
    ]


@torch.no_grad()
def bfloat16(family: Family, place: Place) -> list[Verdict]:
    """Logits in bfloat16: within twice the error of eager in bfloat16, both against eager in float32."""
    exact = valid_logits(place.eager(family), place.inputs(family))
    inputs = place.inputs(family, torch.bfloat16)
    honest = valid_logits(place.eager(family, torch.bfloat16), inputs)
    return [check("logits", valid_logits(place.ours(family, torch.bfloat16), inputs), exact, honest)]


def generated(model: nn.Module, inputs: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    """(tokens, logits): (batch, tokens), and (steps, batch x beams, classes)."""
    words: dict[str, Any] = {name: x for name, x in inputs.items() if not name.startswith("decoder")}
    words |= dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    words |= dict(return_dict_in_generate=True, output_logits=True)
    found = model.generate(**words, **GENERATIONS[kind])  # type: ignore[operator]
    return found.sequences, torch.stack(found.logits)


def generation(family: Family, place: Place, kind: str) -> list[Verdict]:
    """How many generated tokens differ from eager's: none may. The logits of every step tell more than tokens do."""
    inputs = place.inputs(family)
    (tokens, logits), model = generated(place.eager(family), inputs, kind), place.ours(family)
    with counted() as calls:
        got, got_logits = generated(model, inputs, kind)
    different = int((got != tokens).sum()) if got.shape == tokens.shape else tokens.numel()
    return [
        Verdict("calls", 0 if calls else 1, 0),
        Verdict("tokens", different, 0),
        Verdict("logits", largest_error(got_logits, logits), LOGITS),
    ]


class Largest(TorchDispatchMode):
    """Records how many elements the largest tensor held in memory while it was active; a view holds none of its own."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        sizes = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in found]
        self.numel = max(self.numel, *sizes, 0)
        return result


def largest_tensor(model: nn.Module, seqlen: int) -> int:
    """The most elements of a tensor in a training step of an encoder-decoder, both sides `seqlen` long and padded.

    The batch is large enough for the kernels to find work in it alone, so that they do not cut sequences into parts.
    """
    ids = torch.randint(3, 60, (8, seqlen), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(seqlen) < torch.arange(seqlen - 7, seqlen + 1)[:, None]).long()
    # As if no mode were active: it would see each of our ops as one, and not what is made inside.
    unseen = mock.patch.object(torch._C, "_len_torch_dispatch_stack", lambda: 0)
    with Largest() as largest, unseen:
        out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids, decoder_attention_mask=mask)
        out.logits.sum().backward()
    return largest.numel


def checks(
    family: Family, device: str = "cpu", backend: str = "auto"
) -> Iterator[tuple[str, Callable[[], list[Verdict]]]]:
    """(name, check) of everything that the family is held to, on our attention alone and accelerated."""
    for accelerated in (False, True):
        place, how = Place(device, backend, accelerated), "accelerate" if accelerated else "register"
        yield f"{how} float32", partial(forward_backward, family, place)
        yield f"{how} bfloat16", partial(bfloat16, family, place)
        for kind in GENERATIONS if family.generates else ():
            yield f"{how} {kind}", partial(generation, family, place, kind)
