"""Vocabularies as plain data, for the header of a model file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .byte_pairs import BytePairs
from .frames import Frames
from .pretraining import Blanks
from .spelling import SpelledWords
from .vocabulary import Vocabulary, Words

KINDS = {one.kind: one for one in (Vocabulary, Words, SpelledWords, BytePairs, Frames, Blanks)}


def to_header(vocabulary: Vocabulary) -> Sequence[str] | dict[str, Any]:
    """The symbols alone or, where it is another vocabulary than the plain one, its kind and what makes it again."""
    if type(vocabulary) is Vocabulary:
        return vocabulary.symbols
    return {"kind": vocabulary.kind, **vocabulary.fields()}


def from_header(value: Sequence[str] | dict[str, Any]) -> Vocabulary:
    """The inverse of `to_header`.

    Raises:
        ValueError: the kind is unknown, so another version wrote the file.
    """
    if not isinstance(value, dict):
        return Vocabulary(value)
    if value.get("kind") not in KINDS:
        raise ValueError(f"vocabulary of kind {value.get('kind')!r} is unknown; allowed: {', '.join(KINDS)}")
    return KINDS[value["kind"]](**{key: given for key, given in value.items() if key != "kind"})
