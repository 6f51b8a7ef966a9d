"""Models of Hugging Face transformers as they are and with `undivided.accelerate`: a training step, and generation."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .counts import with_backward
from .huggingface_models import SHAPES, Batch, Shape, make, operations, sound, text, weights
from .huggingface_speech import published_whisper, recording, speech
from .op import Absent, Apart, Op, Provider, Runnable, Work

HONEST_RUNS = 4  # of the gate of a step


@dataclass(frozen=True)
class Case:
    """A model of SHAPES and a batch whose sources have the lengths called `source` ("sound": half a minute each).

    "speech" is Whisper with its published weights, and a recording.

    mode: "step" is forward, loss and backward, without the optimizer, which is torch's own on every side; "tokens" is
    the encoder and `tokens` symbols. dtype bfloat16 means autocast in a step, as transformers' Trainer has it, and
    weights of that dtype in generation. dropout: in a step, as the model's config has it. vocab: None is the published
    number of symbols.
    """

    model: str
    mode: str
    source: str
    batch: int
    dtype: str
    dropout: float = 0.0
    tokens: int = 64
    vocab: int | None = None

    @property
    def shape(self) -> Shape:
        shape = SHAPES[self.model]
        return shape if self.vocab is None else replace(shape, vocab=self.vocab)

    def made(self, attn_implementation: str) -> nn.Module:
        if self.source == "speech":
            return published_whisper(attn_implementation)
        return make(self.model.split("-")[0], self.shape, attn_implementation, self.dropout)

    @property
    def size(self) -> float:
        return float(self.batch)

    @property
    def group(self) -> str:
        autocast = " autocast" if self.mode == "step" and self.dtype != "float32" else ""
        return f"{self.model} {self.source} {self.dtype}{autocast}"

    @property
    def name(self) -> str:
        work = f"dropout {self.dropout}" if self.mode == "step" else f"{self.tokens} tokens"
        return f"{self.group} vocab {self.shape.vocab} b{self.batch} {work}"

    def batch_on(self, device: str) -> Batch:
        if self.source == "speech":
            return speech(device)
        if self.shape.mel:
            return sound(self.batch, self.shape.mel, device)
        return text(self.source, self.batch, self.shape.vocab, device)


def cases(quick: bool, device: str) -> list[Case]:
    """A GPU gets four times the batch. Steps of T5 and BART have 4096 symbols: the head and the loss are torch's."""
    many = 4 if device == "cuda" else 1
    if quick:
        steps = [Case(f"{model}-tiny", "step", "verses", 4, "float32", 0.1) for model in ("t5", "bart")]
        return [*steps, Case("t5-tiny", "tokens", "verses", 4, "float32", tokens=8)]
    dtypes, found = ("float32", "bfloat16"), []
    # T5 is trained with dropout, BART's published configs have it too.
    for model in ("t5-small", "bart-base"):
        for source, batch in (("verses", 32), ("reviews", 2)):
            found += [Case(model, "step", source, many * batch, dtype, 0.1, vocab=4096) for dtype in dtypes]
        found += [Case(model, "tokens", "verses", many * 8, dtype) for dtype in dtypes]
    found += [Case("whisper-tiny.en", "tokens", "sound", many, dtype) for dtype in dtypes]
    if recording() is not None:
        found += [Case("whisper-tiny.en", "tokens", "speech", 1, dtype, tokens=24) for dtype in dtypes]
    return found


def work(case: Case, mode: str) -> Work:
    """Of what is no padding; items are the tokens of both sides in a step, and the new ones in generation."""
    batch, shape = case.batch_on("cpu"), case.shape
    if mode == "step":
        counted = with_backward(*operations(shape, batch.src, batch.tgt), "forward_backward")
        # Weights are read by both passes, their gradients written.
        return Work(counted, 4.0 * 3 * weights(shape), items=sum(batch.src) + sum(batch.tgt))
    size = getattr(torch, case.dtype).itemsize
    decoder = shape.layers * (6 * shape.d_model**2 + 2 * shape.d_model * shape.d_ff) + shape.vocab * shape.d_model
    moved = float(size * (weights(shape) + case.tokens * decoder))  # the decoder's weights are read at every step
    counted = sum(operations(shape, batch.src, (case.tokens,) * case.batch))
    return Work(counted, moved, items=case.tokens * case.batch)


@dataclass(frozen=True)
class Way:
    """attn_implementation of transformers' model; with `backend` it is accelerated with that one."""

    attn_implementation: str
    backend: str | None = None

    def model(self, case: Case, device: str) -> nn.Module:
        model = case.made(self.attn_implementation).to(device)
        if case.mode != "step":
            model = model.to(getattr(torch, case.dtype))
        if self.backend is not None:
            import undivided

            undivided.accelerate(model, self.backend)
        return model


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    names = {
        **{f"transformers {name}": Way(name) for name in ("eager", "sdpa")},
        **{f"undivided {name}": Way("eager", name) for name in dict.fromkeys("auto" for _ in backends)},
    }
    if importlib.util.find_spec("transformers") is None:
        return [Absent(name, "transformers is not installed") for name in names]
    import transformers

    import undivided

    transformers.logging.set_verbosity_error()
    return [
        Provider(
            name,
            transformers.__version__ if way.backend is None else undivided.__version__,
            lambda case, device, way=way: way,  # type: ignore[misc]
            way.backend,
        )
        for name, way in names.items()
    ]


def build(way: Any, case: Case, mode: str, device: str) -> Runnable:
    model, batch = way.model(case, device), case.batch_on(device)
    if mode == "step":
        return Apart(step(model, batch, case, dropping=True), step(model, batch, case, dropping=False))
    return Apart(lambda: [generated(model, batch, case.tokens)], lambda: followed(model, case, device))


def step(model: nn.Module, batch: Batch, case: Case, dropping: bool) -> Runnable:
    """The loss of every symbol and the gradients of all weights.

    What is checked drops nothing: each way draws numbers of its own.
    """
    kind, labels = next(model.parameters()).device.type, batch.inputs["labels"]

    def cast() -> AbstractContextManager[object]:
        return torch.autocast(kind, torch.bfloat16) if case.dtype == "bfloat16" else nullcontext()

    def once() -> Sequence[Tensor]:
        model.train(dropping)
        model.zero_grad(set_to_none=True)
        with cast():
            out = model(**batch.inputs)
        out.loss.backward()
        if dropping:  # this is timed: transformers' own loss is the result
            return [out.loss.detach()]
        losses = F.cross_entropy(out.logits.detach().flatten(0, 1).double(), labels.flatten(), reduction="none")
        return [losses, *(weight.grad for weight in model.parameters() if weight.grad is not None)]

    return once


@torch.no_grad()
def generate(model: nn.Module, batch: Batch, tokens: int, **words: Any) -> Any:
    """What transformers' greedy search returns."""
    inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, **words)  # type: ignore[operator]


def generated(model: nn.Module, batch: Batch, tokens: int) -> Tensor:
    """Symbols int64 (batch, tokens)."""
    found: Tensor = generate(model, batch, tokens)
    return found[:, -tokens:]


class Follow:
    """A logits processor that leaves one symbol at each step, (batch, tokens) in their order."""

    def __init__(self, symbols: Tensor) -> None:
        self.left = list(symbols.unbind(1))

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        symbol = self.left.pop(0)
        return scores.new_full(scores.shape, -torch.inf).scatter(1, symbol[:, None], 0.0)


def followed(model: nn.Module, case: Case, device: str) -> Sequence[Tensor]:
    """The logits of every step (tokens, batch, vocab) along the symbols that eager attention finds in float32.

    In float32 also how many of those that the model finds itself are others.
    """
    batch, symbols = case.batch_on(device), right_symbols(case, device)
    words: dict[str, Any] = dict(return_dict_in_generate=True, output_logits=True)
    logits = generate(model, batch, case.tokens, logits_processor=[Follow(symbols)], **words).logits
    if case.dtype != "float32":
        return [torch.stack(logits)]
    return [torch.stack(logits), (generated(model, batch, case.tokens) != symbols).double().sum()]


@lru_cache(maxsize=1)
def right_symbols(case: Case, device: str) -> Tensor:
    return generated(case.made("eager").to(device), case.batch_on(device), case.tokens)


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of a step: the loss of every symbol, and all gradients end to end, each divided by the largest of its weight.

    The error of one number may be twice another's by chance; the largest of many is not. A gradient counts as no
    smaller than a thousandth of the largest of all: that of a key's bias is 0 but for rounding.
    """
    if mode != "step":
        return outputs
    largest = [float(grad.abs().max()) for grad in exact(case, outputs[0].device.type)[1:]]
    least = 1e-3 * max(largest)
    grads = [grad.flatten().double() / max(size, least) for grad, size in zip(outputs[1:], largest, strict=True)]
    return [outputs[0], torch.cat(grads)]


@lru_cache(maxsize=1)
def exact(case: Case, device: str) -> Sequence[Tensor]:
    """A step of eager attention in float64."""
    model = case.made("eager").to(device).double()
    return step(model, case.batch_on(device), replace(case, dtype="float64"), dropping=False)()


def honest(model: nn.Module, case: Case, mode: str, device: str) -> Iterator[Sequence[Tensor]]:
    """Steps of eager attention in the case's dtype, with weights that differ in their last bit.

    A sum in front of T5's relu that is 0 but for rounding gives a token's share of a gradient or does not. A single run
    may have none such, and then says nothing of what rounding can do.
    """
    generator = torch.Generator().manual_seed(2)
    for count in range(HONEST_RUNS):
        if count > 0:
            with torch.no_grad():
                for weight in model.parameters():
                    signs = torch.randint(-1, 2, weight.shape, generator=generator).to(weight)
                    weight.mul_(1 + torch.finfo(weight.dtype).eps * signs)
        yield checked(case, mode, step(model, case.batch_on(device), case, dropping=False)())


@lru_cache(maxsize=1)
def expected(case: Case, mode: str, device: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """transformers' eager attention: in float64, and in the case's dtype."""
    plain = Way("eager").model(case, device)
    if mode == "step":
        right = checked(case, mode, exact(case, device))
        return right, max(honest(plain, case, mode, device), key=lambda run: float((run[1] - right[1]).abs().max()))
    found = followed(plain, case, device)
    wide = case.made("eager").to(device).double()
    return [followed(wide, case, device)[0], *(torch.zeros_like(others) for others in found[1:])], found


HUGGINGFACE = Op(
    "huggingface", cases, lambda case: (case.mode,), providers, build, expected, work, axis="batch", checked=checked
)
