"""Splits that are the same everywhere, where none was published."""

from __future__ import annotations

import hashlib


def digest(text: str) -> int:
    """A number that depends on the text alone."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)
