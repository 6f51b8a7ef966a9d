"""Whether a film review praises: single sentences (`sentiment`) and whole documents (`reviews`), N to 1.

Neither set has a published test part: figures elsewhere are means over ten folds. Here one text in ten is held out for
the test and one in forty of the others for development, by the sha1 of its words, so equal texts never part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .archives import members
from .base import N_TO_1, Example, PairData, PublishedRow, Symbols, Task
from .datasets import DATASETS
from .find import find, read_bytes
from .metrics import label_accuracy
from .splits import digest
from .vocabulary import Vocabulary, Words

SENTENCE_SPLIT, REVIEW_SPLIT = "sentence-polarity", "movie-reviews"
PRAISE, BLAME = "positive", "negative"
TEST_ONE_IN, DEV_ONE_IN = 10, 40
SHOWN = 60  # characters of a text that a reader is shown

Labelled = Iterable[tuple[str, Symbols]]  # (label, words)

# Ten-fold cross-validation. Both Kim 2014 rows were read in a re-implementation's README, Dai and Le's in a review of
# their paper.
SENTENCES_PUBLISHED = (
    PublishedRow("LSTM, pretrained on other reviews", {"accuracy": 83.3}, "Dai and Le 2015, in ShortScience"),
    PublishedRow("CNN, pretrained vectors", {"accuracy": 81.5}, "Kim 2014"),
    PublishedRow("CNN, from random vectors", {"accuracy": 76.1}, "Kim 2014"),
)


def load_sentences(data: str | Path | None = None) -> PairData:
    """The sentences, one a line of two files.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    files = archive(SENTENCE_SPLIT, data)
    texts = [
        (label, tuple(line.split()))
        for label, name in ((PRAISE, "rt-polarity.pos"), (BLAME, "rt-polarity.neg"))
        for line in files[f"sentence_polarity/{name}"].decode().split("\n")
        if line.strip()
    ]
    return make_data(texts, SENTENCE_SPLIT, comparable=True)


def load_reviews(data: str | Path | None = None) -> PairData:
    """The documents, a file each, at their whole length.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    folders = {"pos": PRAISE, "neg": BLAME}
    texts = [
        (folders[name.split("/")[1]], tuple(content.decode().split()))
        for name, content in archive(REVIEW_SPLIT, data).items()
        if name.endswith(".txt") and name.split("/")[1] in folders
    ]
    return make_data(texts, REVIEW_SPLIT, comparable=False)


def archive(name: str, data: str | Path | None) -> dict[str, bytes]:
    """The files of a dataset that is one archive."""
    (path,) = find(DATASETS[name], data).values()
    return members(read_bytes(path))


def make_data(texts: Labelled, split: str, comparable: bool) -> PairData:
    """Splits the texts; words that occur once in what is left to learn from are unknown ones."""
    parts: dict[str, list[tuple[str, Symbols]]] = {"train": [], "dev": [], "test": []}
    # In an order that depends on the words alone, so that the first examples of a part are of both labels.
    for label, words in sorted(texts, key=lambda text: digest(" ".join(text[1]))):
        parts[part(words)].append((label, words))
    pairs = [(words, (label,)) for label, words in parts["train"]]
    dev, test = (
        [Example(shortened(words), words, ((label,),)) for label, words in parts[name]] for name in ("dev", "test")
    )
    source = Words.of(words for words, _ in pairs)
    return PairData(source, Vocabulary((BLAME, PRAISE)), pairs, dev, test, split, comparable)


def part(words: Symbols) -> str:
    number = digest(" ".join(words))
    if number % TEST_ONE_IN == 0:
        return "test"
    return "dev" if number // TEST_ONE_IN % DEV_ONE_IN == 0 else "train"


def shortened(words: Symbols) -> str:
    text = " ".join(words[:SHOWN])
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def tokens(text: str) -> Symbols:
    """A text in lower case, cut into words and punctuation as both sets are.

    Raises:
        ValueError: there is no word.
    """
    found = re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", text.lower())
    if not found:
        raise ValueError(f"{text!r} has no word; give a sentence")
    return tuple(found)


TASK = Task(
    name="sentiment",
    summary="Film review sentences that praise or not, MR",
    dataset=SENTENCE_SPLIT,
    load=load_sentences,
    symbols=tokens,
    score=label_accuracy,
    metric="accuracy",
    columns=("accuracy",),
    published=SENTENCES_PUBLISHED,
    shape=N_TO_1,
    higher_is_better=True,
    unit="sentences",
    caveat="published figures are means over ten folds, ours is one fold of about 1,070 sentences: +-2.5 points",
    recipes={
        "quick": {
            "batch_size": 50,
            "lr": 1e-3,
            "minutes": 2.0,
            "weight_decay": 0.1,
            "ema": 0.995,
            "dev_words": 0,
            "model": {
                "transformer": {"d_model": 128, "encoder_layers": 2, "nheads": 4, "d_ff": 256, "dropout": 0.4},
                **{cell: {"d_model": 128, "layers": 2, "dropout": 0.4} for cell in ("rnn", "gru", "lstm")},
            },
        },
    },
)

REVIEWS = Task(
    name="reviews",
    summary="Film reviews that praise or not, whole documents of 746 words on average",
    dataset=REVIEW_SPLIT,
    load=load_reviews,
    symbols=tokens,
    score=label_accuracy,
    metric="accuracy",
    columns=("accuracy",),
    published=(),
    shape=N_TO_1,
    higher_is_better=True,
    unit="reviews",
    recipes={
        "quick": {
            "batch_size": 8,
            "lr": 1e-3,
            "minutes": 5.0,
            "weight_decay": 0.1,
            "ema": 0.99,
            "evaluations": 6,
            "dev_words": 0,
            "model": {
                "transformer": {"d_model": 64, "encoder_layers": 1, "nheads": 2, "d_ff": 128, "dropout": 0.3},
                **{cell: {"d_model": 64, "layers": 1, "dropout": 0.3} for cell in ("rnn", "gru", "lstm")},
            },
        },
    },
)
