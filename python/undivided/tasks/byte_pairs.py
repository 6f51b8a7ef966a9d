"""Words cut into frequent pieces: byte-pair encoding (Sennrich et al. 2016) over bytes (Radford et al. 2019).

The pieces are learnt from a text. Nothing is unknown: what is rare is cut smaller, at the last into its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from .packages import needed
from .vocabulary import SPECIAL, Vocabulary

EXTRA = "translation"
# Each byte as one printable character, since the library merges characters; a space is "Ġ", as it is in GPT-2.
CHARACTERS = tuple(chr(byte if 0x20 < byte < 0x7F else 0x100 + byte) for byte in range(256))
TO_CHARACTERS = dict(enumerate(CHARACTERS))
TO_BYTES = {ord(character): byte for byte, character in TO_CHARACTERS.items()}
# No piece goes across these: letters (the bytes from 0x80 on are parts of other scripts' letters), figures, the rest,
# each with the space before it; several spaces.
PARTS = "Ġ?[A-Za-z\u0180-\u01ff]+|Ġ?[0-9]+|Ġ?[^A-Za-z0-9\u0180-\u01ffĠ]+|Ġ+"


class BytePairs(Vocabulary):
    """Words in, numbers of their pieces out; a word starts with the space before it.

    Ids 0, 1, 2 are as in every vocabulary, then come the pieces. Cutting needs the package `tokenizers`, joining does
    not. `tokenizer` is that library's own description of it, as JSON.
    """

    kind = "byte pairs"

    def __init__(self, tokenizer: str) -> None:
        self.tokenizer = tokenizer
        pieces: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
        super().__init__(sorted(pieces, key=lambda piece: pieces[piece]))

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], size: int) -> BytePairs:
        """At most `size` pieces: the 256 bytes, and then what merging the most frequent pairs in `texts` gives.

        Raises:
            ValueError: `size` is below 256.
            ImportError: the package `tokenizers` is not installed.
        """
        if size < len(CHARACTERS):
            raise ValueError(f"size={size} must be at least {len(CHARACTERS)}, as many as there are bytes")
        library = needed("tokenizers", EXTRA)
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(PARTS), behavior="isolated")
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=list(CHARACTERS), show_progress=False, special_tokens=[]
        )
        made.train_from_iterator((characters(joined(text)) for text in texts), trainer)
        return cls(made.to_str())

    def fields(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    def encode(self, symbols: Sequence[str]) -> list[Any]:
        """The ids of the words' pieces, without begin or end.

        Raises:
            ValueError: a word has white space in it, or is empty.
            ImportError: the package `tokenizers` is not installed.
        """
        wrong = [word for word in symbols if word.split() != [word]]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not a word: words are not empty and have no white space in them")
        return self.cut(joined(symbols))

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The words up to the first end; what is no text in UTF-8 is replaced."""
        return tuple(self.join(ids).decode("utf-8", "replace").split())

    def pieces(self, symbols: Sequence[str]) -> tuple[str, ...]:
        numbers = self.encode(symbols)
        return tuple(self.join([number]).decode("utf-8", "replace") for number in numbers)

    def cut(self, data: bytes) -> list[int]:
        """The ids of the pieces of any bytes; `join` makes the same bytes of them."""
        return [len(SPECIAL) + number for number in self._library_tokenizer.encode(characters(data)).ids]

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes of the pieces up to the first end; begin and padding are dropped."""
        return bytes(TO_BYTES[ord(character)] for piece in super().decode(ids) for character in piece)

    @cached_property
    def _library_tokenizer(self) -> Any:
        return needed("tokenizers", EXTRA).Tokenizer.from_str(self.tokenizer)


def joined(words: Sequence[str]) -> bytes:
    """The first word has a space before it too, so that it is cut as it is elsewhere."""
    return "".join(f" {word}" for word in words).encode()


def characters(data: bytes) -> str:
    return data.decode("latin-1").translate(TO_CHARACTERS)
