"""BART (Lewis et al. 2020) and what is made like it: mBART, Marian, M2M100 and with it NLLB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...nn import Learned, Positions
from .family import Family
from .heads import BiasedHead
from .positions import ReachingSinusoidal, SplitSinusoidal
from .weights import Names


def block_names(side: str) -> Names:
    """The blocks and last norm of one side, as BART's models and Whisper's name them."""
    ours, theirs = f"{side}.blocks.{{n}}", f"model.{side}.layers.{{n}}"
    norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    if side == "encoder":
        del norms[1]
    names: Names = {
        f"{side}.norm": (f"model.{side}.layer_norm",),
        f"{ours}.feed_forward.w_in": (f"{theirs}.fc1",),
        f"{ours}.feed_forward.w_out": (f"{theirs}.fc2",),
    }
    names |= {f"{ours}.residuals.{i}.norm": (f"{theirs}.{norm}",) for i, norm in enumerate(norms)}
    for name, module in (("attention", f"{theirs}.self_attn"), ("cross", f"{theirs}.encoder_attn")):
        names |= {
            f"{ours}.{name}.q": (f"{module}.q_proj",),
            f"{ours}.{name}.kv": (f"{module}.k_proj", f"{module}.v_proj"),
            f"{ours}.{name}.out": (f"{module}.out_proj",),
        }
    return names


@dataclass(frozen=True)
class Bart(Family):
    """Norm after the sum, learned positions, a norm of the embeddings, a bias on the logits.

    `longest`: positions that there are. `scaled`: embeddings are multiplied by sqrt(d_model).
    """

    norm: str = "post-layer"
    activation: str = "gelu"
    positions: str = "learned"
    longest: int = 1024
    scaled: bool = False

    MODEL: ClassVar[str] = "BartForConditionalGeneration"
    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "src_vocab": ("vocab_size",),
        "tgt_vocab": ("vocab_size",),
        "d_model": ("d_model",),
        "encoder_layers": ("encoder_layers",),
        "decoder_layers": ("decoder_layers",),
        "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
        "d_ff": ("encoder_ffn_dim", "decoder_ffn_dim"),
        "dropout": ("dropout",),
        "activation": ("activation_function",),
        "longest": ("max_position_embeddings",),
        "scaled": ("scale_embedding",),
    }
    EMBEDDINGS: ClassVar[tuple[str | None, str]] = (
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
    )

    @property
    def embedding_scale(self) -> float:
        return self.d_model**0.5 if self.scaled else 1.0

    def make_positions(self, encoder: bool) -> Positions:
        # Their tables have two rows that no position uses.
        return Learned(self.d_model, self.longest, first=2)

    def make_embedding_norm(self) -> nn.Module:
        return self.make_norm()

    def make_head(self) -> Any:
        return BiasedHead(super().make_head(), self.tgt_vocab)

    def names(self) -> Names:
        names: Names = {
            "decoder.head.bias": ("final_logits_bias",),
            "decoder.head.head.weight": ("lm_head.weight",),
            "decoder.head.weight": ("lm_head.weight",),
        }
        for side, embedding in zip(("encoder", "decoder"), self.EMBEDDINGS, strict=True):
            names |= block_names(side)
            names |= {
                f"{side}.embedding.weight": (embedding,),
                f"{side}.embedding_norm": (f"model.{side}.layernorm_embedding",),
                f"{side}.positions.table": (f"model.{side}.embed_positions.weight",),
            }
        return names


@dataclass(frozen=True)
class MBart(Bart):
    """BART with the norm before each sublayer (Liu et al. 2020)."""

    norm: str = "pre-layer"

    MODEL: ClassVar[str] = "MBartForConditionalGeneration"


@dataclass(frozen=True)
class Marian(Bart):
    """BART with sines for positions and no norm of the embeddings (Junczys-Dowmunt et al. 2018)."""

    positions: str = "sinusoidal"

    MODEL: ClassVar[str] = "MarianMTModel"
    COMPUTED: ClassVar[tuple[str, ...]] = tuple(
        f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")
    )

    def make_positions(self, encoder: bool) -> Positions:
        return SplitSinusoidal(self.d_model)

    def make_embedding_norm(self) -> nn.Module:
        return nn.Identity()

    @classmethod
    def _values(cls, model: Any) -> dict[str, Any]:
        values = super()._values(model)
        return values if values["one_embedding"] else values | {"tgt_vocab": model.config.decoder_vocab_size}

    def write(self) -> dict[str, Any]:
        sizes = {"vocab_size": self.src_vocab, "decoder_vocab_size": self.tgt_vocab}
        return super().write() | sizes | {"share_encoder_decoder_embeddings": self.one_embedding}


@dataclass(frozen=True)
class M2M100(Marian):
    """Norm before each sublayer, other sines, and no bias on the logits (Fan et al. 2021)."""

    norm: str = "pre-layer"
    activation: str = "relu"
    scaled: bool = True

    MODEL: ClassVar[str] = "M2M100ForConditionalGeneration"
    COMPUTED: ClassVar[tuple[str, ...]] = ()

    def make_positions(self, encoder: bool) -> Positions:
        # A position's row is its number plus that of the padding symbol, which has the row before the first.
        return ReachingSinusoidal(self.d_model, first=self.pad + 1)

    def make_head(self) -> Any:
        return Family.make_head(self)
