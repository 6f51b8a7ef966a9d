"""Sequence to sequence by recurrent networks, without attention (Sutskever et al. 2014) and with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..transformer.checks import check_ids, check_lengths
from ..transformer.decoding import Decoding
from ..transformer.embedding import Embedding
from ..transformer.generation import generate
from .attention import GeneralAttention
from .config import Config
from .recurrent import Recurrent, State


class Encoder(nn.Module):
    """src (batch, seqlen_src) -> memory (batch, seqlen_src, d_model), and the last state."""

    def __init__(self, config: Config, both_ways: bool) -> None:
        super().__init__()
        self.embedding: Any = Embedding(config.src_vocab, config.d_model)  # or another that has check(name, x)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = Recurrent(config.cell, config.d_model, config.layers, config.dropout, both_ways)

    def forward(self, src: Tensor, src_lengths: Tensor | None = None) -> tuple[Tensor, State]:
        check_lengths("src_lengths", src_lengths, self.embedding.check("src", src))
        return self.recurrent(self.dropout(self.embedding(src)), src_lengths)


class Decoder(nn.Module):
    """tgt (batch, seqlen_tgt) and a state -> logits (batch, seqlen_tgt, tgt_vocab) by the embedding's own table."""

    def __init__(self, config: Config, attention: GeneralAttention | None) -> None:
        super().__init__()
        self.embedding = Embedding(config.tgt_vocab, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = Recurrent(config.cell, config.d_model, config.layers, config.dropout)
        self.attention = attention

    def forward(
        self, tgt: Tensor, state: State, memory: Tensor, src_lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, state = self.recurrent(self.dropout(self.embedding(tgt)), state=state)
        if self.attention is not None:
            x = self.attention(x, memory, src_lengths)
        return self.dropout(x) @ self.embedding.weight.T, state


class Seq2Seq(nn.Module):
    """All that the decoder knows of the source is the last state of the encoder, layer by layer.

    Called and used as `undivided.transformer.Transformer` is.
    """

    attends = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, both_ways=self.attends)
        self.decoder = Decoder(config, GeneralAttention(config.d_model) if self.attends else None)

    def forward(
        self, src: Tensor, tgt: Tensor, src_lengths: Tensor | None = None, tgt_lengths: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, seqlen_tgt, tgt_vocab). The decoder needs no tgt_lengths: padding comes last."""
        check_lengths("tgt_lengths", tgt_lengths, check_ids("tgt", tgt))
        memory, state = self.encoder(src, src_lengths)
        return self.decoder(tgt, state, memory, src_lengths)[0]

    @torch.no_grad()
    def start(self, src: Tensor, src_lengths: Tensor | None = None, longest: int = 64) -> Decoding:
        """The state of decoding; any number of symbols, `longest` is for likeness with the transformer."""
        memory, state = self.encoder(src, src_lengths)

        def step(ids: Tensor, kept: Decoding) -> Tensor:
            have = kept.tensors
            before = tuple(have[f"state {number}"] for number in range(len(state)))
            logits, after = self.decoder(ids, before, have["memory"], have.get("src_lengths"))
            kept.tensors = have | numbered(after)
            return logits[:, -1]

        tensors = {"memory": memory} | ({} if src_lengths is None else {"src_lengths": src_lengths}) | numbered(state)
        return Decoding(step, [], tensors, src.shape[0], src.device)

    def generate(self, src: Tensor, src_lengths: Tensor | None = None, max_length: int = 64, **search: Any) -> Tensor:
        """Ids (batch, n), n <= max_length, without begin; see `undivided.transformer.generation.generate`."""
        return generate(self.start(src, src_lengths, max_length), max_length, **search)


class AttentionSeq2Seq(Seq2Seq):
    """The encoder reads both ways, and the decoder looks at every output of it (Bahdanau et al. 2015)."""

    attends = True

    @torch.no_grad()
    def cross_attention(self, src: Tensor, tgt: Tensor, src_lengths: Tensor | None = None) -> list[Tensor]:
        """What each target position looks at: one map (batch, 1, seqlen_tgt, seqlen_src)."""
        memory, state = self.encoder(src, src_lengths)
        decoder = self.decoder
        assert decoder.attention is not None
        x, _ = decoder.recurrent(decoder.embedding(check_ids("tgt", tgt)), state=state)
        return [decoder.attention.weights(x, memory, src_lengths)[:, None]]


def numbered(state: State) -> dict[str, Tensor]:
    """The tensors of a state under the names that a decoding keeps them by."""
    return {f"state {number}": tensor for number, tensor in enumerate(state)}
