"""Translation (N to M): verses of Young's Literal Translation, of 1862, into the Bible in Basic English, of 1949.

Words are what stands between white space, punctuation and all, as in the published figures. Both sides are English and
are cut into the same pieces.
"""

from __future__ import annotations

from pathlib import Path

from .base import Example, PairData, PublishedRow, Symbols, Task
from .byte_pairs import BytePairs
from .datasets import DATASETS
from .find import find, read_text
from .metrics import bleu
from .packages import needed

SPLIT = "bible-ylt-bbe"
TAG = "<BBE> "  # before every source line: which translation is wanted
PIECES = 4000

# multi-bleu.perl over words between white space, as the repository of the data has it in Results/Results.csv.
SOURCE = "Carlson et al. 2018, Results.csv"
PUBLISHED = (
    PublishedRow("bi-LSTM with attention, all public versions", {"bleu": 24.94}, SOURCE),
    PublishedRow("Moses, this pair of versions", {"bleu": 24.01}, SOURCE),
    PublishedRow("bi-LSTM with attention, all versions", {"bleu": 23.87}, SOURCE),
    PublishedRow("bi-LSTM with attention, public versions to this one", {"bleu": 23.12}, SOURCE),
    PublishedRow("the source as it is", {"bleu": 11.04}, "counted on this split"),
)


def load(data: str | Path | None = None) -> PairData:
    """The published split. The pieces are learnt from the training verses of both sides.

    Raises:
        DataNotFound, DataDamaged: see `find`.
        ImportError: tokenizers or sacrebleu is not installed.
    """
    needed("sacrebleu", "translation")  # now, not at the first score
    paths = find(DATASETS[SPLIT], data)
    train, dev, test = (
        verses(read_text(paths[f"YLTToBBE.{part}.sourc"]), read_text(paths[f"YLTToBBE.{part}.tgt"]))
        for part in ("Train", "Dev", "Test")
    )
    pieces = BytePairs.of((side for pair in train for side in pair), PIECES)
    return PairData(pieces, pieces, train, examples(dev), examples(test), SPLIT, comparable=True)


def verses(source: str, target: str) -> list[tuple[Symbols, Symbols]]:
    """Line n of one text with line n of the other, in words; the source's tag is dropped.

    Raises:
        ValueError: the numbers of lines differ, a source has no tag, or a side is empty; the text gives the line.
    """
    sources, targets = source.splitlines(), target.splitlines()
    if len(sources) != len(targets):
        raise ValueError(f"there are {len(sources)} source and {len(targets)} target lines; as many of each are needed")
    pairs = []
    for number, (given, wanted) in enumerate(zip(sources, targets, strict=True), start=1):
        pair = tuple(given.removeprefix(TAG).split()), tuple(wanted.split())
        if not given.startswith(TAG) or not all(pair):
            raise ValueError(f"line {number} is {given!r} and {wanted!r}; {TAG}VERSE and a verse are needed")
        pairs.append(pair)
    return pairs


def examples(pairs: list[tuple[Symbols, Symbols]]) -> list[Example]:
    return [Example(" ".join(source), source, (target,)) for source, target in pairs]


def words(text: str) -> Symbols:
    """A verse cut at white space.

    Raises:
        ValueError: there is no word.
    """
    found = tuple(text.split())
    if not found:
        raise ValueError(f"{text!r} has no word; give a verse")
    return found


SIZES = {"d_model": 192, "encoder_layers": 3, "decoder_layers": 3, "nheads": 4, "d_ff": 512, "dropout": 0.1}
MODELS = {
    "transformer": {**SIZES, "shared_embedding": True},
    "gru-attention": {"d_model": 256, "layers": 2, "dropout": 0.1},
    "lstm-attention": {"d_model": 224, "layers": 2, "dropout": 0.1},
}

TASK = Task(
    name="bible",
    summary="Verses of Young's Literal Translation into Basic English",
    dataset=SPLIT,
    load=load,
    symbols=words,
    score=bleu,
    metric="bleu",
    columns=("bleu",),
    published=PUBLISHED,
    longest_output=160,
    beams=5,
    higher_is_better=True,
    unit="verses",
    caveat="the published bi-LSTMs learnt from more versions of the Bible than this pair",
    recipes={
        "quick": {
            # Half of the batch learns more in the same time: 600 updates of 32 beat 300 of 64, 4.2 against 5.0 in loss.
            "batch_size": 32,
            "lr": 1.5e-3,
            "minutes": 60.0,
            "label_smoothing": 0.1,
            "ema": 0.999,
            "evaluations": 8,
            "dev_words": 300,
            "model": MODELS,
        },
        "full": {
            "batch_size": 128,
            "lr": 2e-3,
            "minutes": 10.0,
            "label_smoothing": 0.1,
            "ema": 0.999,
            "evaluations": 10,
            "dev_words": 500,
            "model": {"transformer": {**SIZES, "d_model": 256, "d_ff": 1024, "dropout": 0.3, "shared_embedding": True}},
        },
    },
)
