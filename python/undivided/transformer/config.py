"""What a model is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..nn import POSITIONS, FeedForward, LayerNorm, MultiHeadAttention, Positions, RMSNorm, make_positions
from ..nn.feed_forward import ACTIVATIONS
from .embedding import Embedding, Head
from .symbols import SYMBOLS, Symbols

NORMS = ("pre-layer", "pre-rms", "post-layer", "post-rms")


@dataclass(frozen=True)
class Config:
    """The sizes and variants of every model here.

    `tgt_vocab` is the number of classes for a classifier. `norm` says where the norm stands and which it is: before
    each sublayer (Xiong et al. 2020: stable without warm-up) or after the residual sum (Vaswani et al. 2017). `dropout`
    is that of the embeddings and of what each sublayer adds. `shared_embedding` is one table for source, target and
    output, where both sides have the same symbols.

    The `make_` methods give the parts. A family of published models (`undivided.transformer.huggingface`) is a subclass
    that overrides those which it has otherwise.

    Raises:
        ValueError: a value is not allowed; the text gives it and those that are.
    """

    src_vocab: int
    tgt_vocab: int
    d_model: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    nheads: int = 4
    d_ff: int = 256
    dropout: float = 0.0
    norm: str = "pre-layer"
    activation: str = "relu"
    positions: str = "rotary"
    shared_embedding: bool = False

    def __post_init__(self) -> None:
        lowest = {"src_vocab": 1, "tgt_vocab": 1, "d_model": 1, "nheads": 1, "d_ff": 1}
        lowest |= {"encoder_layers": 0, "decoder_layers": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name}={value!r} must be a whole number, at least {low}")
        self._check_heads()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        allowed = {"norm": NORMS, "activation": tuple(ACTIVATIONS), "positions": POSITIONS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(values)}")
        if self.positions == "rotary" and self.d_model // self.nheads % 2:
            raise ValueError(f"head_dim={self.d_model // self.nheads} must be even for rotary positions")
        if self.shared_embedding and self.src_vocab != self.tgt_vocab:
            raise ValueError(f"a shared embedding needs src_vocab={self.src_vocab} to equal tgt_vocab={self.tgt_vocab}")

    def _check_heads(self) -> None:
        if self.d_model % self.nheads:
            raise ValueError(f"d_model={self.d_model} must be a multiple of nheads={self.nheads}")

    @property
    def symbols(self) -> Symbols:
        return SYMBOLS

    @property
    def shared(self) -> bool:
        """Whether encoder and decoder have one embedding."""
        return self.shared_embedding

    def make_embedding(self, encoder: bool) -> nn.Module:
        """What turns the encoder's or the decoder's input into vectors (batch, seqlen, d_model)."""
        return Embedding(self.src_vocab if encoder else self.tgt_vocab, self.d_model)

    def make_positions(self, encoder: bool) -> Positions:
        return make_positions(self.positions, self.d_model, self.nheads, bidirectional=encoder)

    def make_embedding_norm(self) -> nn.Module:
        return nn.Identity()

    def make_attention(self) -> MultiHeadAttention:
        return MultiHeadAttention(self.d_model, self.nheads)

    def make_feed_forward(self) -> FeedForward:
        return FeedForward(self.d_model, self.d_ff, self.activation)

    def make_norm(self) -> nn.Module:
        return (RMSNorm if self.norm.endswith("rms") else LayerNorm)(self.d_model)

    def make_head(self) -> nn.Module:
        return Head()
