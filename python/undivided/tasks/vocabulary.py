"""Symbols to numbers and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<begin>", "<end>")
UNKNOWN = len(SPECIAL)
UNKNOWN_WORD = "<unknown>"


class Vocabulary:
    """The symbols of one side of a task; ids 0, 1, 2 are padding, begin and end, the symbols follow in order.

    Raises:
        ValueError: a symbol occurs twice, or is one of the special ones.
    """

    kind = "symbols"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = tuple(symbols)
        self._ids = {symbol: number for number, symbol in enumerate(self.all_symbols)}
        if len(self._ids) != len(self):
            raise ValueError(f"symbols must be distinct and none of {', '.join(SPECIAL)}; given {self.symbols}")

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.symbols)

    @property
    def all_symbols(self) -> tuple[str, ...]:
        """The special ones too, in the order of their ids."""
        return (*SPECIAL, *self.symbols)

    def fields(self) -> dict[str, Any]:
        """Plain data that makes the same vocabulary again, as the arguments of its class."""
        return {"symbols": self.symbols}

    def pieces(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """What each id that `encode` gives stands for, to be shown."""
        return tuple(symbols)

    def encode(self, symbols: Sequence[str]) -> list[Any]:
        """The ids, without begin or end.

        Raises:
            ValueError: a symbol is unknown; the text names it and the known ones.
        """
        unknown = [symbol for symbol in symbols if symbol not in self._ids or symbol in SPECIAL]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not in the vocabulary; allowed: {' '.join(self.symbols)}")
        return [self._ids[symbol] for symbol in symbols]

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The symbols up to the first end; begin and padding are dropped."""
        out = []
        for number in ids:
            if number == END:
                break
            if number not in (PAD, BEGIN):
                out.append(self.symbols[number - len(SPECIAL)])
        return tuple(out)


class Words(Vocabulary):
    """The frequent words of a text; every other word has the id of `<unknown>`, the first symbol."""

    kind = "words"

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], at_least: int = 2) -> Words:
        """The words that occur `at_least` so often, the most frequent first."""
        counts = Counter(word for text in texts for word in text)
        frequent = [word for word, count in counts.items() if count >= at_least and word not in SPECIAL]
        return cls((UNKNOWN_WORD, *sorted(frequent, key=lambda word: (-counts[word], word))))

    def encode(self, symbols: Sequence[str]) -> list[Any]:
        """The ids, without begin or end; no word is refused."""
        known = (self._ids.get(symbol, UNKNOWN) for symbol in symbols)
        return [number if number >= UNKNOWN else UNKNOWN for number in known]


def pad(rows: Sequence[Sequence[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, lengths): int64 (batch, longest, ...) padded with PAD on the right, and int32 (batch,).

    A row is a sequence of numbers, or of tuples of as many numbers each.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to pad: 0 rows were given, at least 1 is needed")
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD), lengths
