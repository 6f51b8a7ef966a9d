"""Part of speech: one of 17 tags for every word of an English sentence (N to N).

The data is the English Web Treebank of Universal Dependencies, with its published split. A word is read both as
itself and letter by letter, since every eleventh test word is new.
"""

from __future__ import annotations

import re
from pathlib import Path

from .base import N_TO_N, Example, PairData, PublishedRow, Symbols, Task
from .datasets import DATASETS
from .find import find, read_text
from .metrics import label_accuracy
from .spelling import SpelledWords
from .vocabulary import Vocabulary

SPLIT = "ud-english-ewt"
TAGS = tuple("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())

# Each row was read in the repository or model card that it names. The treebank grows: releases differ in some words.
PUBLISHED = (
    PublishedRow("RoBERTa, from raw text (spaCy)", {"accuracy": 96.94}, "model card en_udv25_englishewt_trf"),
    PublishedRow("Flair embeddings", {"accuracy": 96.89}, "stefan-it/flair-pos-tagging"),
    PublishedRow("bi-LSTM, adversarial (Yasunaga 2017)", {"accuracy": 95.82}, "stefan-it/flair-pos-tagging"),
    PublishedRow("bi-LSTM, words, letters, embeddings", {"accuracy": 95.16}, "stefan-it/flair-pos-tagging"),
    PublishedRow("bi-LSTM, words only (Plank 2016)", {"accuracy": 92.1}, "cdg720/bilstm-tagging"),
    PublishedRow("the most frequent tag of each word", {"accuracy": 86.20}, "counted on this split"),
)


def load(data: str | Path | None = None) -> PairData:
    """The published split.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    paths = find(DATASETS[SPLIT], data)
    train, dev, test = (parse(read_text(paths[f"ewt_{part}.tsv"])) for part in ("train", "dev", "test"))
    # The documents come in one of several orders: sorted, so that a seed means the same training everywhere.
    pairs = sorted(train)
    words = SpelledWords.of(source for source, _ in pairs)
    return PairData(words, Vocabulary(TAGS), pairs, examples(dev), examples(test), SPLIT, True)


def parse(text: str) -> list[tuple[Symbols, Symbols]]:
    """`FORM<TAB>UPOS` lines with an empty line between sentences to (words, tags) of each sentence.

    Raises:
        ValueError: a line has no tab, or a tag is unknown; the text gives its number.
    """
    sentences: list[tuple[Symbols, Symbols]] = []
    rows: list[tuple[str, str]] = []
    for number, line in enumerate((*text.split("\n"), ""), start=1):
        if line:
            word, _, tag = line.partition("\t")
            if not word or tag not in TAGS:
                raise ValueError(f"line {number} is {line!r}; a word, a tab and one of {', '.join(TAGS)} are needed")
            rows.append((word, tag))
        elif rows:
            words, tags = zip(*rows, strict=True)
            sentences.append((words, tags))
            rows = []
    return sentences


def examples(sentences: list[tuple[Symbols, Symbols]]) -> list[Example]:
    return [Example(" ".join(words), words, (tags,)) for words, tags in sentences]


def words(text: str) -> Symbols:
    """A sentence cut into words and punctuation, as the treebank cuts it: a clitic is a word of its own.

    Raises:
        ValueError: there is no word.
    """
    spaced = re.sub(r"(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", text, flags=re.IGNORECASE)
    found = re.findall(r"n't\b|'\w+|\w+(?:[-.@]\w+)*|[^\w\s]", spaced, flags=re.IGNORECASE)
    if not found:
        raise ValueError(f"{text!r} has no word; give a sentence")
    return tuple(found)


TASK = Task(
    name="pos",
    summary="Parts of speech of English words, Universal Dependencies English-EWT",
    dataset=SPLIT,
    load=load,
    symbols=words,
    score=label_accuracy,
    metric="accuracy",
    columns=("accuracy",),
    published=PUBLISHED,
    shape=N_TO_N,
    higher_is_better=True,
    unit="sentences",
    caveat="the published rows are of several releases of the treebank, from 1.2 on; this is that of May 2025",
    recipes={
        "quick": {
            "batch_size": 32,
            "lr": 2e-3,
            "minutes": 5.0,
            "weight_decay": 0.05,
            "ema": 0.998,
            "dev_words": 0,
            "model": {
                "transformer": {"d_model": 128, "encoder_layers": 2, "nheads": 4, "d_ff": 256, "dropout": 0.25},
                **{cell: {"d_model": 128, "layers": 2, "dropout": 0.25} for cell in ("rnn", "gru", "lstm")},
            },
        },
    },
)
