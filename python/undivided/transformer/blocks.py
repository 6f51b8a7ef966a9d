"""The blocks of the encoder and the decoder, and their stacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nn import Cache, FeedForward, LayerNorm, MultiHeadAttention, RMSNorm, make_positions
from .config import Config


def make_norm(config: Config) -> nn.Module:
    return (RMSNorm if config.norm.endswith("rms") else LayerNorm)(config.d_model)


class Residual(nn.Module):
    """One sublayer with its norm, dropout and residual sum; the norm stands before it or after the sum."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm, self.dropout = make_norm(config), nn.Dropout(config.dropout)
        self.first = config.norm.startswith("pre")

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.first:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(self.dropout(sublayer(x)), x)[0]


class EncoderBlock(nn.Module):
    """Self-attention, then the feed-forward network. `causal` makes it a block of a language model."""

    def __init__(self, config: Config, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.attention = MultiHeadAttention(config.d_model, config.nheads)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, config.activation)
        self.residuals = nn.ModuleList(Residual(config) for _ in range(2))

    def forward(self, x: Tensor, **words) -> Tensor:  # type: ignore[no-untyped-def]
        attend, feed = self.residuals
        x = attend(x, lambda y: self.attention(y, causal=self.causal, **words))
        return feed(x, self.feed_forward)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross attention to the memory, then the feed-forward network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.d_model, config.nheads)
        self.cross = MultiHeadAttention(config.d_model, config.nheads)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, config.activation)
        self.residuals = nn.ModuleList(Residual(config) for _ in range(3))

    def forward(
        self,
        x: Tensor,  # (batch, seqlen_tgt, d_model)
        memory: Tensor,  # (batch, seqlen_src, d_model)
        src_lengths: Tensor | None,
        caches: tuple[Cache, Cache] | tuple[None, None] = (None, None),
        **words,  # type: ignore[no-untyped-def]
    ) -> Tensor:
        attend, look, feed = self.residuals
        x = attend(x, lambda y: self.attention(y, causal=True, cache=caches[0], **words))
        x = look(x, lambda y: self.cross(y, memory, key_lengths=src_lengths, cache=caches[1], **words))
        return feed(x, self.feed_forward)


class Embedding(nn.Embedding):
    """Vectors of length about 1, scaled up to unit variance, so that the same table can be the output's weights."""

    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__(vocab, d_model)
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        vocab = self.num_embeddings
        if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= vocab:
                raise ValueError(f"id {low if low < 0 else high} is outside the vocabulary: allowed 0 to {vocab - 1}")
        return super().forward(ids) * self.embedding_dim**0.5


class Stack(nn.Module):
    """Embedding, positions, blocks and, with pre-norm, a last norm. `bidirectional` is for the relative positions."""

    def __init__(self, config: Config, vocab: int, blocks: list[nn.Module], bidirectional: bool) -> None:
        super().__init__()
        self.embedding = Embedding(vocab, config.d_model)
        self.positions = make_positions(config.positions, config.d_model, config.nheads, bidirectional)
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = make_norm(config) if config.norm.startswith("pre") else nn.Identity()

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        return self.dropout(self.positions.add(self.embedding(ids), start))
