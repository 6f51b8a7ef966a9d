"""The symbols with a meaning of their own."""

from __future__ import annotations

from dataclasses import dataclass

# The numbers that they have in every vocabulary of the tasks.
PAD, BEGIN, END = 0, 1, 2


@dataclass(frozen=True)
class Symbols:
    """Their numbers: what fills a row after its end, what an output starts from (None: only a prompt says), its end."""

    pad: int = PAD
    begin: int | None = BEGIN
    end: int = END


SYMBOLS = Symbols()
