"""The encoder-decoder transformer (Vaswani et al. 2017, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import Cache
from .blocks import DecoderBlock, EncoderBlock, Stack
from .checks import check_ids, check_lengths
from .config import Config
from .decoding import Decoding
from .generation import generate

Caches = list[tuple[Cache, Cache]]


class Encoder(Stack):
    """src (batch, seqlen_src) -> memory (batch, seqlen_src, d_model)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.src_vocab, [EncoderBlock(config) for _ in range(config.encoder_layers)], True)

    def forward(self, src: Tensor, src_lengths: Tensor | None = None) -> Tensor:
        check_lengths("src_lengths", src_lengths, check_ids("src", src))
        x = self.embed(src)
        for block in self.blocks:
            x = block(x, key_lengths=src_lengths, positions=self.positions)
        return self.norm(x)


class Decoder(Stack):
    """tgt (batch, seqlen_tgt) and the memory -> logits (batch, seqlen_tgt, tgt_vocab), by the embedding's own table."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.tgt_vocab, [DecoderBlock(config) for _ in range(config.decoder_layers)], False)

    def forward(
        self, tgt: Tensor, memory: Tensor, src_lengths: Tensor | None = None, caches: Caches | None = None
    ) -> Tensor:
        check_ids("tgt", tgt)
        start = caches[0][0].length if caches else 0
        x = self.embed(tgt, start)
        for index, block in enumerate(self.blocks):
            pair = caches[index] if caches else (None, None)
            x = block(x, memory, src_lengths, pair, positions=self.positions, start=start)
        return self.norm(x) @ self.embedding.weight.T


class Transformer(nn.Module):
    """Sequence to sequence: `model(src, tgt, src_lengths=, tgt_lengths=)` gives logits.

    src, tgt: int64 (batch, seqlen), padded on the right; tgt starts with the begin symbol. src_lengths: int32 (batch,).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def forward(
        self, src: Tensor, tgt: Tensor, src_lengths: Tensor | None = None, tgt_lengths: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, seqlen_tgt, tgt_vocab). A causal decoder needs no tgt_lengths: padding comes last."""
        check_lengths("tgt_lengths", tgt_lengths, check_ids("tgt", tgt))
        return self.decoder(tgt, self.encoder(src, src_lengths), src_lengths)

    @torch.no_grad()
    def start(self, src: Tensor, src_lengths: Tensor | None = None, longest: int = 64) -> Decoding:
        """The state of decoding at most `longest` symbols for each source."""
        memory = self.encoder(src, src_lengths)
        caches = [(Cache(longest), Cache(memory.shape[1])) for _ in self.decoder.blocks]

        def step(ids: Tensor, kept: Decoding) -> Tensor:
            return self.decoder(ids, kept.tensors["memory"], kept.tensors.get("src_lengths"), caches)[:, -1]

        tensors = {"memory": memory} | ({} if src_lengths is None else {"src_lengths": src_lengths})
        return Decoding(step, [cache for pair in caches for cache in pair], tensors, src.shape[0], src.device)

    def generate(self, src: Tensor, src_lengths: Tensor | None = None, max_length: int = 64, **search: Any) -> Tensor:
        """Ids (batch, n), n <= max_length, without begin; see `undivided.transformer.generation.generate`."""
        return generate(self.start(src, src_lengths, max_length), max_length, **search)

    @torch.no_grad()
    def cross_attention(self, src: Tensor, tgt: Tensor, src_lengths: Tensor | None = None) -> list[Tensor]:
        """Per decoder block, what each target position looks at: (batch, nheads, seqlen_tgt, seqlen_src)."""
        memory, positions = self.encoder(src, src_lengths), self.decoder.positions
        x, maps = self.decoder.embed(tgt), []
        for block in self.decoder.blocks:
            assert isinstance(block, DecoderBlock)
            seen: list[Tensor] = []
            hook = block.cross.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            x = block(x, memory, src_lengths, positions=positions, start=0)
            hook.remove()
            maps.append(block.cross.weights(seen[0], memory, positions=positions, key_lengths=src_lengths))
        return maps
