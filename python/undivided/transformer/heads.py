"""N to 1, N to N, and a language model, on the same blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import Cache, Packing, unpack
from .blocks import EncoderBlock, Stack
from .captured import Captured
from .config import Config
from .decoding import Decoding
from .generation import generate
from .model import Encoder


class TokenClassifier(nn.Module):
    """N to N: logits (batch, seqlen, tgt_vocab), a class for every token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.encoder = config, Encoder(config)
        self.classes = nn.Linear(config.d_model, config.tgt_vocab)

    def forward(self, src: Tensor, src_lengths: Tensor | Packing | None = None) -> Tensor:
        return self.classes(self.encoder(src, src_lengths))


class NextToken(nn.Module):
    """Left to right: logits (batch, seqlen, tgt_vocab) for every token, from it and those before it alone.

    It is a language model that has the encoder of the classifiers, so that these can start from it. The logits are by
    the embedding's own table.

    Raises:
        ValueError: src_vocab and tgt_vocab differ.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.src_vocab != config.tgt_vocab:
            sizes = f"src_vocab={config.src_vocab} and tgt_vocab={config.tgt_vocab}"
            raise ValueError(f"a language model reads what it writes: {sizes} must be equal")
        self.config, self.encoder, self.head = config, Encoder(config, causal=True), config.make_head()

    def forward(self, src: Tensor, src_lengths: Tensor | Packing | None = None) -> Tensor:
        return self.head(self.encoder(src, src_lengths), self.encoder.embedding.weight)


class SequenceClassifier(nn.Module):
    """N to 1: logits (batch, tgt_vocab), from the mean over the tokens that are no padding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.encoder = config, Encoder(config)
        self.classes = nn.Linear(config.d_model, config.tgt_vocab)

    def forward(self, src: Tensor, src_lengths: Tensor | Packing | None = None) -> Tensor:
        x = self.encoder(src, src_lengths)  # (batch, seqlen, d_model)
        if isinstance(src_lengths, Packing):
            x, src_lengths = unpack(x, src_lengths), src_lengths.cu_seqlens.diff()
        if src_lengths is None:
            return self.classes(x.mean(1))
        seen = torch.arange(x.shape[1], device=x.device) < src_lengths[:, None]
        total = torch.where(seen[..., None], x, 0.0).sum(1)
        return self.classes(total / src_lengths.clamp_min(1)[:, None].to(x.dtype))


class CausalLM(Stack):
    """A decoder alone: logits (batch, seqlen, tgt_vocab) of the next symbol, by the embedding's own table.

    It has `decoder_layers` blocks over the symbols of `tgt_vocab`.
    """

    def __init__(self, config: Config) -> None:
        blocks: list[nn.Module] = [EncoderBlock(config, causal=True) for _ in range(config.decoder_layers)]
        super().__init__(config, blocks, encoder=False)
        self.config, self.head = config, config.make_head()

    def forward(self, tgt: Tensor, caches: list[Cache] | None = None) -> Tensor:
        self.embedding.check("tgt", tgt)
        start = caches[0].start(tgt.shape[1]) if caches else 0
        x = self.embed(tgt, start)
        for index, block in enumerate(self.blocks):
            x = block(x, positions=self.positions, start=start, cache=caches[index] if caches else None)
        return self.head(self.norm(x), self.embedding.weight)

    def generate(self, prompt: Tensor, max_length: int = 64, *, cuda_graph: bool = False, **search: Any) -> Tensor:
        """Ids (batch, n), n <= max_length, that follow `prompt` int64 (batch, m).

        cuda_graph: as for `Transformer.start`.
        """
        longest = prompt.shape[1] + max_length - 1  # the last symbol is not read
        captured = Captured(self, longest, prompt.device) if cuda_graph else None
        caches = [Cache(longest, on_device=cuda_graph) for _ in self.blocks]
        step = lambda ids, _: self(ids, caches)[:, -1]  # noqa: E731
        decoding = Decoding(step, caches, {}, prompt.shape[0], prompt.device, captured)
        return generate(decoding, max_length, prompt=prompt, symbols=self.config.symbols, **search)
