"""Symbols to numbers and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<begin>", "<end>")


class Vocabulary:
    """The symbols of one side of a task; ids 0, 1, 2 are padding, begin and end, the symbols follow in order.

    Raises:
        ValueError: a symbol occurs twice, or is one of the special ones.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = tuple(symbols)
        self._ids = {symbol: number for number, symbol in enumerate((*SPECIAL, *self.symbols))}
        if len(self._ids) != len(self):
            raise ValueError(f"symbols must be distinct and none of {', '.join(SPECIAL)}; given {self.symbols}")

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.symbols)

    def encode(self, symbols: Sequence[str]) -> list[int]:
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


def pad(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, lengths): int64 (batch, longest) padded with PAD on the right, and int32 (batch,).

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to pad: 0 rows were given, at least 1 is needed")
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    ids = torch.full((len(rows), int(lengths.max())), PAD, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, lengths
