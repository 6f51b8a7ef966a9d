"""Words together with their spelling, so that a word that training has not seen still says something."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .vocabulary import PAD, Words

# The bytes of a word in UTF-8 that are kept: of a longer one the first and the last half of these.
LONGEST_WORD = 16
# Numbers of a spelling: 0 is padding, 1 to 256 are the bytes, then come the marks of a word's begin and end.
WORD_BEGIN, WORD_END = 257, 258
LETTERS = 259
SPELLING = LONGEST_WORD + 2


class SpelledWords(Words):
    """As `Words`, without regard to case; each word is its id followed by its `SPELLING` letters, case kept."""

    kind = "spelled words"

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], at_least: int = 2) -> SpelledWords:
        """The words that occur `at_least` so often, the most frequent first."""
        return cls(Words.of(([word.lower() for word in text] for text in texts), at_least).symbols)

    def encode(self, symbols: Sequence[str]) -> list[Any]:
        """One tuple of 1 + SPELLING numbers a word."""
        ids = super().encode([word.lower() for word in symbols])
        return [(number, *spell(word)) for number, word in zip(ids, symbols, strict=True)]


def spell(word: str) -> tuple[int, ...]:
    """The letters of a word between its marks, padded to SPELLING numbers."""
    letters = word.encode()
    if len(letters) > LONGEST_WORD:
        letters = letters[: LONGEST_WORD // 2] + letters[-LONGEST_WORD // 2 :]
    row = (WORD_BEGIN, *(byte + 1 for byte in letters), WORD_END)
    return row + (PAD,) * (SPELLING - len(row))
