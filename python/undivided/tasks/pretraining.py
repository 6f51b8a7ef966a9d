"""What can be learnt from film reviews without their labels, to be fine-tuned on `sentiment` or another task.

`span_corruption` (N to M, T5), `masked_words` (N to N, BERT) and `next_word` (left to right, GPT) read the same
sentences with the same vocabulary. What is hidden is drawn anew each epoch. Documents that `reviews` is tested on stay
out of the training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from .archives import members
from .base import LEFT_TO_RIGHT, N_TO_M, N_TO_N, Example, PairData, Symbols, Task
from .corruption import KEPT, MASK, SENTINELS, hide_spans, hide_words, span_mask
from .datasets import DATASETS
from .find import find, read_bytes
from .metrics import check_paired, edit_distance
from .sentiment import REVIEW_SPLIT, part, shortened
from .splits import digest
from .vocabulary import PAD, UNKNOWN_WORD, Vocabulary, Words

AT_LEAST = 8  # occurrences of a word that is known
SHORTEST, LONGEST = 4, 64  # words in a sentence; longer ones are cut into pieces
SCORED = 1000  # sentences of the development and of the test part

Pair = tuple[Symbols, Symbols]
Corrupt = Callable[[Symbols, "Text", random.Random], Pair]


class Text:
    """The sentences of each part, and the vocabulary of those to learn from."""

    def __init__(self, documents: dict[str, list[list[Symbols]]]) -> None:
        sentences = {name: [one for document in texts for one in document] for name, texts in documents.items()}
        frequent = Words.of(sentences["train"], AT_LEAST).symbols[1:]
        self.known, self.inside = frequent, frozenset(frequent)
        self.words = Words((UNKNOWN_WORD, MASK, *SENTINELS, *frequent))
        self.sentences = {
            name: [one for one in texts if sum(word in self.inside for word in one) >= 2]
            for name, texts in sentences.items()
        }


class Blanks(Words):
    """Words as labels, where those that are KEPT have none: they are padding."""

    kind = "blanks"

    def encode(self, symbols: Sequence[str]) -> list[Any]:
        ids = super().encode(symbols)
        return [PAD if symbol == KEPT else number for symbol, number in zip(symbols, ids, strict=True)]


@lru_cache(maxsize=1)
def read(path: Path) -> Text:
    """The sentences of all reviews, a line each; parted by document as for the task `reviews`."""
    documents: dict[str, list[list[Symbols]]] = {"train": [], "dev": [], "test": []}
    for name, content in members(read_bytes(path)).items():
        if name.endswith(".txt") and name.split("/")[1] in ("pos", "neg"):
            text = content.decode()
            lines = [line.split() for line in text.splitlines()]
            pieces = [tuple(line[n : n + LONGEST]) for line in lines for n in range(0, len(line), LONGEST)]
            kept = [piece for piece in pieces if len(piece) >= SHORTEST]
            documents[part(tuple(text.split()))].append(kept)
    return Text(documents)


def load(corrupt: Corrupt, target: type[Words], data: str | Path | None = None) -> PairData:
    """Sentences with something hidden; that of the scored ones is always the same.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    (path,) = find(DATASETS[REVIEW_SPLIT], data).values()
    text = read(path)
    renewed = partial(pairs, corrupt, text)
    dev, test = (examples(corrupt, text, name) for name in ("dev", "test"))
    labels: Vocabulary = text.words if target is Words else target(text.words.symbols)
    return PairData(text.words, labels, renewed(0), dev, test, REVIEW_SPLIT, comparable=False, renewed=renewed)


def pairs(corrupt: Corrupt, text: Text, epoch: int) -> list[Pair]:
    made = random.Random(digest(f"hidden in epoch {epoch}"))
    return [corrupt(sentence, text, made) for sentence in text.sentences["train"]]


def examples(corrupt: Corrupt, text: Text, name: str) -> list[Example]:
    made = random.Random(digest(f"hidden in {name}"))
    chosen = sorted(text.sentences[name], key=lambda words: digest(" ".join(words)))[:SCORED]
    cut = ((sentence, corrupt(sentence, text, made)) for sentence in chosen)
    return [Example(shortened(sentence), source, (target,)) for sentence, (source, target) in cut]


def spans(sentence: Symbols, text: Text, made: random.Random) -> Pair:
    return hide_spans(sentence, span_mask(len(sentence), made))


def masked(sentence: Symbols, text: Text, made: random.Random) -> Pair:
    return hide_words(sentence, text.known, text.inside, made)


def shifted(sentence: Symbols, text: Text, made: random.Random) -> Pair:
    """Every word's label is the next word; unknown words are no labels."""
    return sentence[:-1], tuple(word if word in text.inside else KEPT for word in sentence[1:])


def tokens(text: str) -> Symbols:
    """A text in lower case, cut into words, punctuation and marks such as <mask>.

    Raises:
        ValueError: there is none.
    """
    found = tuple(re.findall(r"<\w+>|\w+(?:['-]\w+)*|[^\w\s]", text.lower()))
    if not found:
        raise ValueError(f"{text!r} has no word; give a sentence, with {MASK} or {SENTINELS[0]} for what is hidden")
    return found


def hidden_accuracy(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> dict[str, float]:
    """Part of the labels that are right, in percent, where the reference is not KEPT.

    Returns:
        {"accuracy": percent, "labels": count}.

    Raises:
        ValueError: outputs and references do not pair, or there are no labels.
    """
    check_paired(outputs, references)
    pairs = [
        (given, wanted)
        for output, (reference, *_) in zip(outputs, references, strict=True)
        for given, wanted in zip(output, reference, strict=True)
        if wanted != KEPT
    ]
    if not pairs:
        raise ValueError(f"{len(outputs)} references have 0 labels, at least 1 is needed")
    return {"accuracy": 100.0 * sum(given == wanted for given, wanted in pairs) / len(pairs), "labels": len(pairs)}


def symbol_error(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> dict[str, float]:
    """Edits over the symbols of the references, in percent.

    Returns:
        {"error": percent, "words": count of symbols}.

    Raises:
        ValueError: outputs and references do not pair.
    """
    check_paired(outputs, references)
    edits = sum(edit_distance(output, wanted) for output, (wanted, *_) in zip(outputs, references, strict=True))
    symbols = sum(len(wanted) for wanted, *_ in references)
    return {"error": 100.0 * edits / max(symbols, 1), "words": symbols}


# The sizes of the classifiers that are fine-tuned from these.
SIZES = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 1, "nheads": 4, "d_ff": 256, "dropout": 0.1}
RECIPES = {
    "quick": {
        "batch_size": 32,
        "lr": 1e-3,
        "minutes": 10.0,
        "evaluations": 5,
        "dev_words": 300,
        "model": {"transformer": SIZES},
    },
    "full": {
        "batch_size": 128,
        "lr": 1e-3,
        "minutes": 10.0,
        "evaluations": 10,
        "dev_words": 0,
        "model": {"transformer": SIZES},
    },
}


def _task(name: str, summary: str, shape: str, corrupt: Corrupt, target: type[Words], **others: Any) -> Task:
    return Task(
        name=name,
        summary=summary,
        dataset=REVIEW_SPLIT,
        load=partial(load, corrupt, target),
        symbols=tokens,
        published=(),
        shape=shape,
        unit="sentences",
        recipes=RECIPES,
        **others,
    )


_ACCURACY = {"score": hidden_accuracy, "metric": "accuracy", "columns": ("accuracy",), "higher_is_better": True}

TASKS = (
    _task(
        "span_corruption",
        "Film reviews with spans of words hidden, to be written (T5)",
        N_TO_M,
        spans,
        Words,
        score=symbol_error,
        metric="error",
        columns=("error",),
        longest_output=40,
    ),
    _task("masked_words", "Film reviews with words hidden, to be found (BERT)", N_TO_N, masked, Blanks, **_ACCURACY),
    _task(
        "next_word",
        "Film reviews, after every word the next one to be found (GPT)",
        LEFT_TO_RIGHT,
        shifted,
        Blanks,
        **_ACCURACY,
    ),
)
