"""T5 (Raffel et al. 2020) and mT5 (Xue et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...nn import FeedForward, MultiHeadAttention, Positions, Relative
from ...nn.feed_forward import ACTIVATIONS
from .family import Family
from .heads import ScaledHead
from .weights import Names


@dataclass(frozen=True)
class T5(Family):
    """RMS norm first, no biases, scores that are not scaled, one table of relative positions for each stack.

    `scaled_head` is for the first T5 models: their logits are from the decoder's output / sqrt(d_model).
    """

    norm: str = "pre-rms"
    positions: str = "relative"
    head_dim: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    scaled_head: bool = True

    MODEL: ClassVar[str] = "T5ForConditionalGeneration"
    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "src_vocab": ("vocab_size",),
        "tgt_vocab": ("vocab_size",),
        "d_model": ("d_model",),
        "encoder_layers": ("num_layers",),
        "decoder_layers": ("num_decoder_layers",),
        "nheads": ("num_heads",),
        "d_ff": ("d_ff",),
        "dropout": ("dropout_rate",),
        "activation": ("feed_forward_proj",),
        "head_dim": ("d_kv",),
        "num_buckets": ("relative_attention_num_buckets",),
        "max_distance": ("relative_attention_max_distance",),
    }
    FIXED: ClassVar[dict[str, Any]] = {"layer_norm_epsilon": 1e-6}
    EMBEDDINGS: ClassVar[tuple[str | None, str]] = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

    def _check_heads(self) -> None:
        if self.head_dim < 1:
            raise ValueError(f"head_dim={self.head_dim} must be at least 1")

    def make_positions(self, encoder: bool) -> Positions:
        return Relative(self.nheads, encoder, self.num_buckets, self.max_distance)

    def make_attention(self) -> MultiHeadAttention:
        return MultiHeadAttention(self.d_model, self.nheads, head_dim=self.head_dim, scale=1.0)

    def make_feed_forward(self) -> FeedForward:
        return FeedForward(self.d_model, self.d_ff, self.activation, bias=False)

    def make_head(self) -> Any:
        head = super().make_head()
        return ScaledHead(head, self.d_model**-0.5) if self.scaled_head else head

    @classmethod
    def _values(cls, model: Any) -> dict[str, Any]:
        # mT5's config does not have it.
        return super()._values(model) | {"scaled_head": getattr(model.config, "scale_decoder_outputs", False)}

    def write(self) -> dict[str, Any]:
        # It says there whether the head is scaled; whether it is tied, the weights themselves say.
        return super().write() | {"tie_word_embeddings": self.scaled_head}

    def names(self) -> Names:
        gated = ACTIVATIONS[self.activation][1]
        names: Names = dict.fromkeys(("decoder.head.weight", "decoder.head.head.weight"), ("lm_head.weight",))
        for side, embedding, layers in zip(("encoder", "decoder"), self.EMBEDDINGS, (2, 3), strict=True):
            ours, theirs = f"{side}.blocks.{{n}}", f"{side}.block.{{n}}.layer"
            feed_forward = f"{theirs}.{layers - 1}.DenseReluDense"
            names |= {
                f"{side}.embedding.weight": (embedding,),
                f"{side}.positions.table": (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
                f"{side}.norm": (f"{side}.final_layer_norm",),
                f"{ours}.feed_forward.w_in": (f"{feed_forward}.wi_0" if gated else f"{feed_forward}.wi",),
                f"{ours}.feed_forward.w_gate": (f"{feed_forward}.wi_1",),
                f"{ours}.feed_forward.w_out": (f"{feed_forward}.wo",),
            }
            names |= {f"{ours}.residuals.{i}.norm": (f"{theirs}.{i}.layer_norm",) for i in range(layers)}
            for name, module in (("attention", f"{theirs}.0.SelfAttention"), ("cross", f"{theirs}.1.EncDecAttention")):
                names |= {
                    f"{ours}.{name}.q": (f"{module}.q",),
                    f"{ours}.{name}.kv": (f"{module}.k", f"{module}.v"),
                    f"{ours}.{name}.out": (f"{module}.o",),
                }
        return names


@dataclass(frozen=True)
class MT5(T5):
    """T5 with a gated feed-forward network and a head that is not scaled."""

    activation: str = "geglu_tanh"
    scaled_head: bool = False

    MODEL: ClassVar[str] = "MT5ForConditionalGeneration"
