"""What is hidden of a text, so that a model learns by finding it: spans (T5) and single words (BERT)."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from .base import Symbols

NOISE, MEAN_SPAN = 0.15, 3.0
MASK, KEPT = "<mask>", "<kept>"
SENTINELS = tuple(f"<extra_{number}>" for number in range(32))
# Of the hidden words so many are replaced by another word, and as many are left as they are (Devlin et al. 2019).
REPLACED = LEFT = 0.1


def noise_counts(length: int, noise: float = NOISE, mean_span: float = MEAN_SPAN) -> tuple[int, int]:
    """(hidden words, spans) of a text of `length` words, as T5 has it: the nearest whole numbers, at least 1 of each.

    Raises:
        ValueError: the text has fewer than 2 words, so that none would be left.
    """
    if length < 2:
        raise ValueError(f"a text of {length} words has none to hide; at least 2 are needed")
    hidden = min(max(round(length * noise), 1), length - 1)
    spans = min(max(round(hidden / mean_span), 1), hidden, length - hidden)
    return hidden, spans


def span_mask(length: int, made: random.Random, noise: float = NOISE, mean_span: float = MEAN_SPAN) -> list[bool]:
    """Which words of a text are hidden (Raffel et al. 2020).

    Hidden and seen words are both cut at random into as many parts, none empty, which take turns, a seen one first.
    """
    hidden, spans = noise_counts(length, noise, mean_span)
    mask: list[bool] = []
    for seen, gone in zip(parts(length - hidden, spans, made), parts(hidden, spans, made), strict=True):
        mask += [False] * seen + [True] * gone
    return mask


def parts(total: int, count: int, made: random.Random) -> list[int]:
    """`count` whole numbers from 1 on with this sum, all such lists equally likely."""
    cuts = sorted(made.sample(range(1, total), count - 1))
    return [high - low for low, high in zip([0, *cuts], [*cuts, total], strict=True)]


def hide_spans(words: Sequence[str], mask: Sequence[bool]) -> tuple[Symbols, Symbols]:
    """(source, target): each hidden span is a sentinel in the source; the target has each sentinel and then its span.

    As in T5's code; the target ends with the last span (the paper's figure has one more sentinel there).

    Raises:
        ValueError: words and mask differ in length, or there are more spans than sentinels.
    """
    if len(words) != len(mask):
        raise ValueError(f"{len(words)} words and a mask of {len(mask)} were given; as many of each are needed")
    begins = [hidden and not (n and mask[n - 1]) for n, hidden in enumerate(mask)]
    if sum(begins) > len(SENTINELS):
        raise ValueError(f"the mask has {sum(begins)} spans, at most {len(SENTINELS)} have a sentinel")
    source: list[str] = []
    target: list[str] = []
    names = iter(SENTINELS)
    for word, hidden, first in zip(words, mask, begins, strict=True):
        if first:
            source.append(name := next(names))
            target.append(name)
        (target if hidden else source).append(word)
    return tuple(source), tuple(target)


def hide_words(
    words: Sequence[str], known: Sequence[str], inside: Collection[str], made: random.Random
) -> tuple[Symbols, Symbols]:
    """(source, target): of 15 % of the words, at least one, each is its own label; the label of the others is KEPT.

    In the source eight of ten of those words are MASK, one is a random word of `known`, one is left as it is (Devlin et
    al. 2019). Only words in `inside` are hidden.

    Raises:
        ValueError: no word is in `inside`.
    """
    places = [number for number, word in enumerate(words) if word in inside]
    if not places:
        raise ValueError(f"none of the {len(words)} words is known, so none can be hidden")
    source, target = list(words), [KEPT] * len(words)
    for place in made.sample(places, min(len(places), max(1, round(NOISE * len(words))))):
        target[place], chance = words[place], made.random()
        if chance >= REPLACED + LEFT:
            source[place] = MASK
        elif chance >= LEFT:
            source[place] = made.choice(known)
    return tuple(source), tuple(target)
