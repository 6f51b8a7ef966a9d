"""One encoder layer and one decoder layer, with the gradients of all their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from . import lengths
from .counts import decoder_operations, encoder_operations, with_backward
from .implementations import Implementation, on_backend, on_torch, providers
from .op import Op, Runnable, Work


@dataclass(frozen=True)
class Case:
    """A batch of verses with their real lengths. kind: encoder or decoder; dtype is that of weights and inputs."""

    kind: str
    batch: int
    d_model: int
    nheads: int
    d_ff: int
    dtype: str

    @property
    def size(self) -> float:
        return float(self.d_model)

    @property
    def group(self) -> str:
        return f"{self.kind} layer {self.dtype}"

    @property
    def name(self) -> str:
        return f"{self.kind} layer b{self.batch} verses {self.d_model}x{self.d_ff} h{self.nheads} {self.dtype}"

    @property
    def src_lengths(self) -> tuple[int, ...]:
        return lengths.batch("verses", self.batch)

    @property
    def tgt_lengths(self) -> tuple[int, ...]:
        """Of the decoder's own sequence; an encoder's is the source."""
        return lengths.batch("plain verses", self.batch) if self.kind == "decoder" else self.src_lengths


def cases(quick: bool, device: str) -> list[Case]:
    batch = 8 if quick else 256 if device == "cuda" else 32
    return [
        Case(kind, batch, 512, 8, 2048, dtype) for kind in ("encoder", "decoder") for dtype in ("float32", "bfloat16")
    ]


def modes(case: Case) -> Sequence[str]:
    return ("forward", "forward_backward")


def work(case: Case, mode: str) -> Work:
    sizes = (case.d_model, case.d_ff)
    if case.kind == "encoder":
        pairs = [encoder_operations(n, *sizes) for n in case.src_lengths]
    else:
        pairs = [
            decoder_operations(n, memory, *sizes) for n, memory in zip(case.tgt_lengths, case.src_lengths, strict=True)
        ]
    operations = with_backward(sum(a for a, _ in pairs), sum(b for _, b in pairs), mode)
    size = getattr(torch, case.dtype).itemsize
    weights = (4 if case.kind == "encoder" else 8) * case.d_model**2 + 2 * case.d_model * case.d_ff
    tokens = sum(case.tgt_lengths) * case.d_model
    passes = 1 if mode == "forward" else 3
    return Work(operations, float(size * passes * (weights + 2 * tokens)), items=sum(case.tgt_lengths))


@lru_cache(maxsize=2)
def setup(case: Case, device: str) -> tuple[nn.Module, dict[str, Any], Tensor, Tensor]:
    """(block, its words, x, dout): x (batch, seqlen, d_model); padded rows of dout are 0."""
    from undivided.nn import make_positions
    from undivided.transformer import Config
    from undivided.transformer.blocks import DecoderBlock, EncoderBlock

    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    # relu's gradient jumps where a rounding changes a sign: two right results would differ.
    config = Config(1, 1, d_model=case.d_model, nheads=case.nheads, d_ff=case.d_ff, activation="gelu")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        block: nn.Module = EncoderBlock(config) if case.kind == "encoder" else DecoderBlock(config)
    block.to(device, dtype)

    def draw(count: int) -> Tensor:
        return torch.randn(case.batch, count, case.d_model, generator=generator).to(device, dtype)

    valid = torch.tensor(case.src_lengths, dtype=torch.int32, device=device)
    words: dict[str, Any] = dict(positions=make_positions("rotary", case.d_model, case.nheads, True).to(device))
    if case.kind == "encoder":
        words["key_lengths"] = valid
    else:
        words |= dict(memory=draw(case.src_lengths[0]), src_lengths=valid)
    x, dout = draw(case.tgt_lengths[0]), draw(case.tgt_lengths[0])
    inside = torch.arange(x.shape[1], device=device) < torch.tensor(case.tgt_lengths, device=device)[:, None]
    return block, words, x, dout * inside[..., None]


def build(implementation: Any, case: Case, mode: str, device: str) -> Runnable:
    return bind(implementation, *setup(case, device), mode)


def bind(
    implementation: Implementation, block: nn.Module, words: dict[str, Any], x: Tensor, dout: Tensor, mode: str
) -> Runnable:
    """The output, or the gradients of x, the memory and every weight."""
    run = torch.compile(block, dynamic=False) if implementation.compiles else block
    if mode == "forward":

        def forward() -> Sequence[Tensor]:
            with torch.no_grad(), implementation.open():
                return (run(x, **words),)

        return forward
    words = {
        k: v.detach().requires_grad_(v.is_floating_point()) if isinstance(v, Tensor) else v for k, v in words.items()
    }
    x = x.detach().requires_grad_()
    leaves = [x, *(v for v in words.values() if isinstance(v, Tensor) and v.requires_grad), *block.parameters()]

    def both() -> Sequence[Tensor]:
        with implementation.open():
            return torch.autograd.grad(run(x, **words), leaves, dout)

    return both


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@lru_cache(maxsize=4)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The same weights in float64 on the reference, and on plain torch in the case's dtype."""
    block, words, x, dout = setup(case, device)
    wide = {name: double(value) for name, value in words.items()} | {
        "positions": copy.deepcopy(words["positions"]).double()
    }
    exact = bind(on_backend("reference"), copy.deepcopy(block).double(), wide, x.double(), dout.double(), mode)()
    return list(exact), list(build(on_torch(), case, mode, device)())


LAYERS = Op("layers", cases, modes, providers, build, expected, work, axis="d_model")
