"""One whole training step of the thin encoder-decoder: forward, loss, backward, AdamW."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import implementations, lengths
from .counts import decoder_operations, encoder_operations, with_backward
from .implementations import Implementation, on_backend, on_torch
from .op import Absent, Op, Provider, Runnable, Work

VOCAB = 4096
PAD = 0


@dataclass(frozen=True)
class Case:
    """batch verses, real lengths, through layers + layers; bfloat16 means autocast, the weights stay float32.
    positions: as in the model's Config."""

    batch: int
    layers: int
    d_model: int
    nheads: int
    d_ff: int
    dtype: str
    positions: str = "rotary"

    @property
    def size(self) -> float:
        return float(self.d_model)

    @property
    def group(self) -> str:
        words = [f"{self.positions} positions"] if self.positions != "rotary" else []
        return " ".join((*words, "bfloat16 autocast" if self.dtype == "bfloat16" else self.dtype))

    @property
    def name(self) -> str:
        sizes = f"{self.d_model}x{self.d_ff} h{self.nheads}"
        return f"{self.layers}+{self.layers} layers b{self.batch} verses {sizes} {self.group}"

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(source, target) lengths, longest first."""
        return list(zip(lengths.batch("verses", self.batch), lengths.batch("plain verses", self.batch), strict=True))


def cases(quick: bool, device: str) -> list[Case]:
    layers, batch = (1, 4) if quick else (6, 32)
    if device == "cuda":  # the widths that are trained, in the dtype of training
        widths = (512,) if quick else (512, 1024)
        return [Case(8 * batch, layers, n, n // 64, 4 * n, "bfloat16", "relative") for n in widths]
    return [Case(batch, layers, 512, 8, 2048, dtype) for dtype in ("float32", "bfloat16")]


def work(case: Case, mode: str) -> Work:
    """Of the layers and the output's matmul; items are the tokens of both sides."""
    matmuls = attention = 0.0
    for src, tgt in case.pairs:
        for a, b in (
            encoder_operations(src, case.d_model, case.d_ff),
            decoder_operations(tgt, src, case.d_model, case.d_ff),
        ):
            matmuls, attention = matmuls + case.layers * a, attention + case.layers * b
        matmuls += 2.0 * tgt * case.d_model * VOCAB
    weights = case.layers * (12 * case.d_model**2 + 4 * case.d_model * case.d_ff) + 2 * VOCAB * case.d_model
    # Weights are read by both passes, their gradients written and read, and AdamW reads and writes three states.
    moved = 4.0 * weights * (2 + 2 + 6)
    return Work(with_backward(matmuls, attention, "forward_backward"), moved, items=sum(a + b for a, b in case.pairs))


@lru_cache(maxsize=1)
def setup(case: Case, device: str) -> tuple[nn.Module, tuple[Tensor, ...], torch.optim.Optimizer]:
    """(model, (src, tgt, src_lengths), optimizer), the same for every provider."""
    from undivided.transformer import Config, Transformer

    generator = torch.Generator().manual_seed(0)
    config = Config(
        VOCAB,
        VOCAB,
        d_model=case.d_model,
        nheads=case.nheads,
        d_ff=case.d_ff,
        positions=case.positions,
        activation="gelu",  # relu's gradient jumps where a rounding changes a sign: right results would differ
        encoder_layers=case.layers,
        decoder_layers=case.layers,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Transformer(config).to(device)

    def draw(counts: Sequence[int]) -> Tensor:
        ids = torch.randint(3, VOCAB, (case.batch, counts[0]), generator=generator)
        return ids.masked_fill(torch.arange(counts[0]) >= torch.tensor(counts)[:, None], PAD).to(device)

    src, tgt = draw([a for a, _ in case.pairs]), draw([b for _, b in case.pairs])
    src_lengths = torch.tensor([a for a, _ in case.pairs], dtype=torch.int32, device=device)
    # A learning rate of 0 does all of the optimizer's work and leaves the weights as they are, so that every step,
    # and every provider, computes the same.
    return model, (src, tgt, src_lengths), torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    """The padded batch on everybody, and packed on our kernels; torch has no attention for packed batches on a CPU.
    There ours leaves the padding out by itself; `undivided padded` carries it along, as it does on a GPU. On a GPU
    nothing is compiled: twelve layers take longer than a run has."""
    import undivided

    ways = [("undivided packed", on_backend("auto", packed=True))]
    if device == "cpu":
        ways.append(("undivided padded", on_backend("auto", pads=True)))
    ours = [Provider(name, undivided.__version__, lambda *_, way=way: way, "auto") for name, way in ways]
    found = implementations.providers(device, backends)
    return [*ours, *(one for one in found if device == "cpu" or one.name != "torch.compile")]


def build(implementation: Any, case: Case, mode: str, device: str) -> Runnable:
    model, batch, optimizer = setup(case, device)
    return bind(implementation, model, batch, case.dtype == "bfloat16", optimizer)


def bind(
    implementation: Implementation,
    model: nn.Module,
    batch: tuple[Tensor, ...],
    autocast: bool,
    optimizer: torch.optim.Optimizer | None,
) -> Runnable:
    """The loss of every symbol and the gradients of all weights."""
    run = torch.compile(model, dynamic=False) if implementation.compiles else model
    src, tgt, src_lengths = batch
    lengths = (tgt != PAD).sum(1) - 1  # of what is read and what is written
    kind, tokens = src.device.type, int(lengths.sum())

    def cast() -> AbstractContextManager[object]:
        return torch.autocast(kind, torch.bfloat16) if autocast else nullcontext()

    def once() -> Sequence[Tensor]:
        model.zero_grad(set_to_none=True)
        with implementation.open(), cast():
            losses = losses_of(run, src, tgt, src_lengths, lengths, implementation.packed)
        with implementation.open():
            (losses.sum() / tokens).backward()
        if optimizer is not None:
            optimizer.step()
        return [losses.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]

    return once


def losses_of(model: Any, src: Tensor, tgt: Tensor, src_lengths: Tensor, tgt_lengths: Tensor, packed: bool) -> Tensor:
    """The loss of every symbol that is no padding, one row after the other. Packing is part of the step."""
    from undivided.nn import pack

    read, written = tgt[:, :-1], tgt[:, 1:]
    if packed:
        (src, sources), (read, targets), (written, _) = (
            pack(src, src_lengths), pack(read, tgt_lengths), pack(written, tgt_lengths)
        )  # fmt: skip
        logits = model(src, read, sources, targets)
    else:
        logits = model(src, read, src_lengths, tgt_lengths)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    written = written.flatten()
    losses = F.cross_entropy(wide.flatten(0, 1), written, ignore_index=PAD, reduction="none")
    return losses if packed else losses[written != PAD]


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The losses, and the gradients of all weights of one kind (say, every layer's w_in) laid end to end.

    The error of one number, such as the mean loss, may be twice another's by chance; the largest of many is not.
    """
    model = setup(case, outputs[0].device.type)[0]
    kinds: dict[str, list[Tensor]] = {}
    for (name, _), grad in zip(model.named_parameters(), outputs[1:], strict=True):
        kinds.setdefault(".".join(word for word in name.split(".") if not word.isdigit()), []).append(grad.flatten())
    return [outputs[0], *(torch.cat(grads) for grads in kinds.values())]


@lru_cache(maxsize=2)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The same weights in float64 on the reference, and on plain torch in the case's precision."""
    model, batch, _ = setup(case, device)
    exact = bind(on_backend("reference"), copy.deepcopy(model).double(), batch, False, None)()
    plain = bind(on_torch(), copy.deepcopy(model), batch, case.dtype == "bfloat16", None)()
    return list(checked(case, mode, exact)), list(checked(case, mode, plain))


TRAINING_STEP = Op(
    "training_step", cases, lambda case: ("step",), providers, build, expected, work, axis="d_model", checked=checked
)
