"""Vocabularies as plain data, for the header of a model file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .spelling import SpelledWords
from .vocabulary import Vocabulary, Words

KINDS = {one.kind: one for one in (Vocabulary, Words, SpelledWords)}


def to_header(vocabulary: Vocabulary) -> Sequence[str] | dict[str, Any]:
    """The symbols alone, or with the kind of vocabulary where it is another than the plain one."""
    if type(vocabulary) is Vocabulary:
        return vocabulary.symbols
    return {"kind": vocabulary.kind, "symbols": vocabulary.symbols}


def from_header(value: Sequence[str] | dict[str, Any]) -> Vocabulary:
    """The inverse of `to_header`.

    Raises:
        ValueError: the kind is unknown, so another version wrote the file.
    """
    if not isinstance(value, dict):
        return Vocabulary(value)
    if value.get("kind") not in KINDS:
        raise ValueError(f"vocabulary of kind {value.get('kind')!r} is unknown; allowed: {', '.join(KINDS)}")
    return KINDS[value["kind"]](value["symbols"])
