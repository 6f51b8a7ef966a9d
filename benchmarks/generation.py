"""Generation with caches: the time to the first symbol, and symbols a second.

Every provider is fed the same symbols, so that all do the same work; what is checked are the log-probabilities of each
step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from . import ctranslate2_peer, implementations, lengths
from .counts import decoder_operations, encoder_operations
from .implementations import Implementation, on_backend, on_torch
from .op import Absent, Op, Provider, Runnable, Work

VOCAB = 1024
BEGIN = 1


@dataclass(frozen=True)
class Case:
    """`steps` symbols for each of `batch` verses, through layers + layers."""

    batch: int
    steps: int
    layers: int
    d_model: int
    nheads: int
    d_ff: int
    dtype: str

    @property
    def size(self) -> float:
        return float(self.batch)

    @property
    def group(self) -> str:
        return self.dtype

    @property
    def name(self) -> str:
        sizes = f"{self.layers}+{self.layers} layers {self.d_model}x{self.d_ff} h{self.nheads}"
        return f"b{self.batch} {self.steps} steps {sizes} {self.dtype}"

    @property
    def src_lengths(self) -> tuple[int, ...]:
        return lengths.batch("verses", self.batch)


def cases(quick: bool, device: str) -> list[Case]:
    if quick:
        return [Case(8, 8, 1, 256, 4, 1024, "float32")]
    return [Case(batch, 32, 3, 512, 8, 2048, dtype) for dtype in ("float32", "bfloat16") for batch in (1, 32)]


def steps(case: Case, mode: str) -> int:
    return 1 if mode == "first_token" else case.steps


def work(case: Case, mode: str) -> Work:
    """The encoder and the keys of the memory once, then a step a symbol; items are symbols."""
    count, d_model, d_ff = steps(case, mode), case.d_model, case.d_ff
    operations = 0.0
    for src in case.src_lengths:
        operations += case.layers * sum(encoder_operations(src, d_model, d_ff))
        operations += case.layers * sum(decoder_operations(count, src, d_model, d_ff)) + 2.0 * count * d_model * VOCAB
    size = getattr(torch, case.dtype).itemsize
    encoder = case.layers * (4 * d_model**2 + 2 * d_model * d_ff)
    decoder = case.layers * (6 * d_model**2 + 2 * d_model * d_ff) + VOCAB * d_model
    moved = float(size * (encoder + 2 * case.layers * d_model**2 + count * decoder))  # weights are read at every step
    return Work(operations, moved, items=count * case.batch)


@lru_cache(maxsize=1)
def setup(case: Case, device: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """(model, src, src_lengths, symbols): symbols (batch, steps) are fed one after the other."""
    from undivided.transformer import Config, Transformer

    generator = torch.Generator().manual_seed(0)
    config = Config(
        VOCAB,
        VOCAB,
        d_model=case.d_model,
        nheads=case.nheads,
        d_ff=case.d_ff,
        activation="gelu",
        positions="sinusoidal",
        encoder_layers=case.layers,
        decoder_layers=case.layers,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Transformer(config).to(device, getattr(torch, case.dtype)).eval()
    src = torch.randint(4, VOCAB, (case.batch, case.src_lengths[0]), generator=generator).to(device)
    symbols = torch.randint(4, VOCAB, (case.batch, case.steps), generator=generator).to(device)
    symbols[:, 0] = BEGIN
    return model, src, torch.tensor(case.src_lengths, dtype=torch.int32, device=device), symbols


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    """Without torch.compile: caches that grow would compile at every step."""
    found = [one for one in implementations.providers(device, backends) if one.name != "torch.compile"]
    if device == "cuda":
        graph = replace(on_backend("auto"), graph=True)
        found.append(Provider("undivided auto graph", found[0].version, lambda case, device: graph, backend="auto"))
    return [*found, ctranslate2_peer.provider(device)]


def build(implementation: Any, case: Case, mode: str, device: str) -> Runnable:
    """implementation: an Implementation, or what has a `bind` of its own."""
    model, src, src_lengths, symbols = setup(case, device)
    fed = (model, src, src_lengths, symbols[:, : steps(case, mode)])
    return bind(implementation, *fed) if isinstance(implementation, Implementation) else implementation.bind(*fed)


def bind(
    implementation: Implementation, model: nn.Module, src: Tensor, src_lengths: Tensor, symbols: Tensor
) -> Runnable:
    """Logits (batch, steps, VOCAB)."""

    def once() -> Sequence[Tensor]:
        with torch.no_grad(), implementation.open():
            graph = implementation.graph
            decoding = model.start(src, src_lengths, symbols.shape[1], cuda_graph=graph)  # type: ignore[operator]
            return (torch.stack([decoding.step(one[:, None]) for one in symbols.unbind(1)], 1),)

    return once


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Log-probabilities, which is what some give instead of logits."""
    return [out.to(torch.promote_types(out.dtype, torch.float32)).log_softmax(-1) for out in outputs]


@lru_cache(maxsize=2)
def expected(case: Case, mode: str, device: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The same weights in float64 on the reference, and on plain torch in the case's dtype."""
    model, src, src_lengths, symbols = setup(case, device)
    fed = symbols[:, : steps(case, mode)]
    exact = bind(on_backend("reference"), copy.deepcopy(model).double(), src, src_lengths, fed)()
    plain = bind(on_torch(), model, src, src_lengths, fed)()
    return checked(case, mode, exact), checked(case, mode, plain)


GENERATION = Op(
    "generation",
    cases,
    lambda case: ("first_token", "tokens"),
    providers,
    build,
    expected,
    work,
    axis="batch",
    checked=checked,
)
