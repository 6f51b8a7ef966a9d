"""The claims that are measured on the tasks, a file each; a new one is a module and a row here."""

from __future__ import annotations

from . import depth, gradients, lengths, packing, positions
from .claim import Claim, Panel, Setup

CLAIMS: dict[str, Claim] = {
    one.name: one for one in (gradients.CLAIM, lengths.CLAIM, positions.CLAIM, depth.CLAIM, packing.CLAIM)
}

__all__ = ["CLAIMS", "Claim", "Panel", "Setup", "claim"]


def claim(name: str) -> Claim:
    """The row called `name`.

    Raises:
        ValueError: there is none; the text lists the names.
    """
    if name not in CLAIMS:
        raise ValueError(f"no claim is called {name!r}; allowed: {', '.join(CLAIMS)}")
    return CLAIMS[name]
