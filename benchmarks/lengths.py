"""Real lengths of sequences, for padded and packed batches.

A distribution is kept as 32 quantiles, those at 1/64, 3/64 ... 63/64 of the data named beside it, so that a batch is
the same wherever the benchmarks run. The pronunciation task's own data is read when it is on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Distribution:
    """32 quantiles, ascending. `origin`: what was counted, and where that is published."""

    quantiles: tuple[int, ...]
    origin: str


_BIBLE = "27,595 training verses of YLTToBBE (github.com/keithecarlson/StyleTransferBibleData), words and marks"

# fmt: off
STORED = {
    "letters": Distribution(
        (4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 8, 8, 8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 12, 13),
        "113,438 training pairs of cmudict-g014b2b (github.com/steveash/jg2p), letters",
    ),
    "phonemes": Distribution(
        (3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8, 8, 9, 9, 10, 10, 12),
        "113,438 training pairs of cmudict-g014b2b (github.com/steveash/jg2p), phonemes",
    ),
    "verses": Distribution(
        (8, 10, 12, 13, 14, 14, 15, 16, 17, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 34, 35, 37,
         39, 42, 46, 54),
        _BIBLE + ", Young's literal translation",
    ),
    "plain verses": Distribution(
        (8, 11, 13, 14, 15, 16, 17, 18, 18, 19, 20, 21, 22, 23, 23, 24, 25, 26, 27, 28, 29, 30, 32, 33, 34, 36, 38, 40,
         42, 45, 49, 57),
        _BIBLE + ", in Basic English",
    ),
    "reviews": Distribution(
        (240, 305, 349, 390, 435, 464, 490, 513, 539, 558, 580, 605, 625, 643, 665, 686, 707, 735, 757, 777, 800, 826,
         851, 888, 917, 955, 995, 1054, 1128, 1243, 1381, 1725),
        "2,000 film reviews (Pang and Lee 2004; movie_reviews of github.com/nltk/nltk_data), words",
    ),
}
# fmt: on


def batch(name: str, count: int) -> tuple[int, ...]:
    """`count` lengths spread evenly over the distribution, longest first.

    Raises:
        ValueError: there is no such distribution.
    """
    if name not in STORED:
        raise ValueError(f"no lengths are called {name!r}; allowed: {', '.join(STORED)}")
    quantiles = (_task_lengths() or {}).get(name, STORED[name].quantiles)
    return tuple(sorted((quantiles[int((i + 0.5) * len(quantiles) / count)] for i in range(count)), reverse=True))


@cache
def _task_lengths() -> dict[str, tuple[int, ...]] | None:
    """Quantiles of the pronunciation task's data; None when it is not on this machine. Nothing is downloaded."""
    from undivided.tasks.datasets import DATASETS
    from undivided.tasks.find import DataNotFound, find, read_text
    from undivided.tasks.g2p import PUBLISHED_SPLIT, parse

    try:
        text = read_text(find(DATASETS[PUBLISHED_SPLIT], download=False)["g014b2b.train"])
    except DataNotFound:
        return None
    words = parse(text)
    letters = [len(word) for word, pronunciations in words.items() for _ in pronunciations]
    phonemes = [len(one) for pronunciations in words.values() for one in pronunciations]
    return {"letters": quantiles(letters), "phonemes": quantiles(phonemes)}


def quantiles(values: Sequence[int], count: int = 32) -> tuple[int, ...]:
    ordered = sorted(values)
    return tuple(ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count))
