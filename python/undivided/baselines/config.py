"""What a recurrent model is made of."""

from __future__ import annotations

from dataclasses import dataclass

CELLS = ("rnn", "gru", "lstm")
POOLINGS = ("mean", "last")


@dataclass(frozen=True)
class Config:
    """The sizes and variants of every model here.

    `cell` is the plain tanh cell (Elman 1990), the GRU (Cho et al. 2014) or the LSTM (Hochreiter, Schmidhuber 1997).
    A model that reads in both directions gives each of them half of `d_model`. `dropout` is that of the embeddings,
    between layers and of the output. `pooling` makes one vector of a sequence for a classifier: the mean over its
    symbols, read both ways, or the last state, read forward. `tgt_vocab` is the number of classes for a classifier.

    Raises:
        ValueError: a value is not allowed; the text gives it and those that are.
    """

    src_vocab: int
    tgt_vocab: int
    cell: str = "gru"
    d_model: int = 128
    layers: int = 2
    dropout: float = 0.0
    pooling: str = "mean"

    def __post_init__(self) -> None:
        for name in ("src_vocab", "tgt_vocab", "d_model", "layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
        if self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even: two directions share it")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        for name, values in (("cell", CELLS), ("pooling", POOLINGS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(values)}")
