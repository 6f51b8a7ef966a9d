"""Tiny transformers models, eager and ours, for the tests of the integration."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import transformers

from undivided.testing.huggingface import Place
from undivided.testing.huggingface_models import FAMILIES, Family

transformers.logging.set_verbosity_error()
BY_NAME = {family.name: family for family in FAMILIES}
T5_FAMILY = BY_NAME["t5"]
ACCELERATED = Place(accelerated=True)


def good(verdicts) -> None:
    bad = [verdict for verdict in verdicts if not verdict.ok]
    assert not bad, bad


def pair(family: Family, accelerated: bool = True):
    place = Place(accelerated=accelerated)
    return place.eager(family), place.ours(family)
