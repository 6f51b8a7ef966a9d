"""The blocks of the encoder and the decoder, and their stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..nn import Cache, Packing
from ..nn.packing import Start
from .config import Config


class Residual(nn.Module):
    """One sublayer with its norm, dropout and residual sum; the norm stands before it or after the sum."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm, self.dropout = config.make_norm(), nn.Dropout(config.dropout)
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
        self.attention = config.make_attention()
        self.feed_forward = config.make_feed_forward()
        self.residuals = nn.ModuleList(Residual(config) for _ in range(2))

    def forward(self, x: Tensor, **words) -> Tensor:  # type: ignore[no-untyped-def]
        attend, feed = self.residuals
        x = attend(x, lambda y: self.attention(y, causal=self.causal, **words))
        return feed(x, self.feed_forward)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross attention to the memory, then the feed-forward network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = config.make_attention()
        self.cross = config.make_attention()
        self.feed_forward = config.make_feed_forward()
        self.residuals = nn.ModuleList(Residual(config) for _ in range(3))

    def forward(
        self,
        x: Tensor,  # (batch, seqlen_tgt, d_model)
        memory: Tensor,  # (batch, seqlen_src, d_model)
        src_lengths: Tensor | Packing | None,
        caches: tuple[Cache, Cache] | tuple[None, None] = (None, None),
        **words,  # type: ignore[no-untyped-def]
    ) -> Tensor:
        attend, look, feed = self.residuals
        x = attend(x, lambda y: self.attention(y, causal=True, cache=caches[0], **words))
        x = look(x, lambda y: self.cross(y, memory, key_lengths=src_lengths, cache=caches[1], **words))
        return feed(x, self.feed_forward)


class Stack(nn.Module):
    """Embedding, positions, blocks and, with pre-norm, a last norm: of the encoder, or of a decoder."""

    def __init__(self, config: Config, blocks: list[nn.Module], encoder: bool) -> None:
        super().__init__()
        self.embedding: Any = config.make_embedding(encoder)  # it also has check(name, x) and, in a decoder, weight
        self.positions = config.make_positions(encoder)
        self.embedding_norm = config.make_embedding_norm()
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = config.make_norm() if config.norm.startswith("pre") else nn.Identity()

    def embed(self, x: Tensor, start: Start = 0) -> Tensor:
        return self.dropout(self.embedding_norm(self.positions.add(self.embedding(x), start)))
