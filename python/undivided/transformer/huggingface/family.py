"""What the families of published models have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...nn import MultiHeadAttention
from ..config import Config
from ..embedding import Embedding, Head
from ..symbols import Symbols
from .heads import OwnHead
from .weights import Names

# Theirs: ours. Of several of theirs with the same meaning the first is written.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "gated-gelu": "geglu_tanh",
    "gated-silu": "swiglu",
}


@dataclass(frozen=True)
class Family(Config):
    """A `Config` with what published models add: symbols of their own and the tables that say how they are converted.

    `tied`: the output's weights are the decoder's embedding. `one_embedding`: the encoder's is the same one.
    """

    tied: bool = True
    one_embedding: bool = True
    pad: int = 0
    begin: int | None = 0
    end: int = 1

    MODEL: ClassVar[str]  # the class of the transformers library
    FIELDS: ClassVar[dict[str, tuple[str, ...]]]  # ours: theirs, which must all have the same value
    FIXED: ClassVar[dict[str, Any]] = {}  # a field of theirs: the one value that is supported
    EMBEDDINGS: ClassVar[tuple[str | None, str]]  # the encoder's and the decoder's, in the class of theirs
    COMPUTED: ClassVar[tuple[str, ...]] = ()  # weights of theirs that are made here, not kept

    def names(self) -> Names:
        """Our weights and theirs."""
        raise NotImplementedError

    @property
    def symbols(self) -> Symbols:
        return Symbols(self.pad, self.begin, self.end)

    @property
    def shared(self) -> bool:
        return self.one_embedding

    def make_embedding(self, encoder: bool) -> Any:
        return Embedding(self.src_vocab if encoder else self.tgt_vocab, self.d_model, self.embedding_scale)

    @property
    def embedding_scale(self) -> float:
        return 1.0

    def make_attention(self) -> MultiHeadAttention:
        return MultiHeadAttention(self.d_model, self.nheads, bias=True)

    def make_head(self) -> Any:
        return Head() if self.tied else OwnHead(self.d_model, self.tgt_vocab)

    @classmethod
    def read(cls, model: Any) -> Family:
        """The config of a model of the transformers library.

        Raises:
            ValueError: it has a variant that is not supported; the text gives the field and what is allowed.
        """
        return cls(**cls._values(model))

    @classmethod
    def _values(cls, model: Any) -> dict[str, Any]:
        config = model.config
        for name, value in cls.FIXED.items():
            if getattr(config, name) != value:
                raise ValueError(f"{name}={getattr(config, name)!r} is not supported; allowed: {value!r}")
        values = {ours: _one_value(config, theirs) for ours, theirs in cls.FIELDS.items()}
        if values["activation"] not in ACTIVATIONS:
            raise ValueError(f"activation {values['activation']!r} is not supported; allowed: {', '.join(ACTIVATIONS)}")
        values["activation"] = ACTIVATIONS[values["activation"]]
        encoder, decoder = (name and model.get_parameter(name) for name in cls.EMBEDDINGS)
        values |= {"tied": model.get_output_embeddings().weight is decoder, "one_embedding": encoder is decoder}
        return values | _symbols(model)

    def write(self) -> dict[str, Any]:
        """What the config of the transformers library is made with."""
        values = {name: getattr(self, ours) for ours, theirs in self.FIELDS.items() for name in theirs}
        activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == self.activation)
        values |= dict.fromkeys(self.FIELDS["activation"], activation) | self.FIXED
        symbols = {"pad_token_id": self.pad, "decoder_start_token_id": self.begin, "eos_token_id": self.end}
        # Theirs ties all or none; a head of its own is made after that.
        return values | symbols | {"tie_word_embeddings": self.tied or self.one_embedding}


def _one_value(config: Any, names: tuple[str, ...]) -> Any:
    values = [getattr(config, name) for name in names]
    if any(value != values[0] for value in values):
        given = " and ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{given} differ: only equal ones are supported")
    return values[0]


def _symbols(model: Any) -> dict[str, int | None]:
    """From the config or, where that does not say, from the settings of generation."""
    places = model.config, model.generation_config

    def found(name: str) -> Any:
        return next((value for place in places if (value := getattr(place, name, None)) is not None), None)

    end = found("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    if len(ends) != 1 or ends[0] is None:
        raise ValueError(f"eos_token_id={end!r} is not supported; allowed: one symbol")
    pad = found("pad_token_id")
    return {"pad": ends[0] if pad is None else pad, "begin": found("decoder_start_token_id"), "end": ends[0]}
