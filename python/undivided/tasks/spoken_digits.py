"""Spoken digits (N to M): what one speaker says, one digit or three to six of them, as sound; and the digits.

The recordings are real ones of single digits, 0.4 s each; a string of digits is several of them end to end. The
published test part is recordings 0 to 4 of every digit and speaker.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from ..speech.audio import read_audio, read_wav, resample
from .archives import members
from .base import Example, PairData, PublishedRow, Symbols, Task
from .datasets import DATASETS
from .find import find, read_bytes
from .frames import Frames, slots, strengths
from .metrics import check_paired, edit_distance
from .splits import digest
from .vocabulary import Vocabulary

SPLIT = "free-spoken-digits"
DIGITS = tuple("0123456789")
TEST_BELOW, DEV_BELOW = 5, 8  # recordings 0 to 4 are the test, 5 to 7 for development
SHORTEST, LONGEST = 3, 6  # digits in a string that is scored
ROUNDS = 6  # strings that each scored recording is in
STRINGS = 960  # that are learnt from in an epoch
GROWTH = 4  # epochs after which they may be a digit longer
MOST_SECONDS = 30

# Single digits. None of them has figures for strings.
PUBLISHED = (
    PublishedRow("CNN on MFCC, another split", {"accuracy": 97.0}, "Thite, sound-mnist"),
    PublishedRow("logistic regression on pooled bands", {"accuracy": 95.33}, "measured on this split"),
    PublishedRow("ResNet-18 on mel bands", {"accuracy": 95.27}, "dilne/Free-Spoken-Digit-Dataset"),
)


@dataclass(frozen=True)
class Clip:
    """One recording of one digit; frames are its `strengths`."""

    digit: str
    speaker: str
    number: int
    frames: Tensor


def load(data: str | Path | None = None) -> PairData:
    """The published split. The strings to learn from are others each epoch, of up to six digits.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    clips = read(find(DATASETS[SPLIT], data)["recordings.tar"])
    train = tuple(clip for clip in clips if clip.number >= DEV_BELOW)
    dev = [clip for clip in clips if TEST_BELOW <= clip.number < DEV_BELOW]
    test = [clip for clip in clips if clip.number < TEST_BELOW]
    renewed = partial(drawn, train)
    return PairData(
        Frames(), Vocabulary(DIGITS), renewed(0), examples(dev), examples(test), SPLIT, comparable=True, renewed=renewed
    )


@lru_cache(maxsize=1)
def read(path: Path) -> tuple[Clip, ...]:
    """Every recording; its name is `digit_speaker_number.wav`. They are kept: reading them takes seconds."""
    clips = []
    for name, content in members(read_bytes(path)).items():
        if name.endswith(".wav"):
            digit, speaker, number = Path(name).stem.split("_")
            samples, rate = read_wav(io.BytesIO(content))
            clips.append(Clip(digit, speaker, int(number), strengths(resample(samples.mean(1), rate))))
    return tuple(clips)


def drawn(clips: Sequence[Clip], epoch: int) -> list[tuple[Symbols, Symbols]]:
    """STRINGS strings of random recordings of one random speaker each; which ones depends on `epoch` alone.

    They have one digit at first, and up to LONGEST later: what a digit sounds like is learnt before where it ends.
    """
    made = random.Random(digest(f"strings {epoch}"))
    longest = min(LONGEST, 1 + epoch // GROWTH)
    speakers = by_speaker(clips)
    names = sorted(speakers)
    pairs = []
    for _ in range(STRINGS):
        choice = speakers[made.choice(names)]
        pairs.append(pair(made.choices(choice, k=made.randint(1, longest))))
    return pairs


def examples(clips: Sequence[Clip]) -> list[Example]:
    """Every recording alone and, in turn with these, strings of three to six in which each is ROUNDS times."""
    made = random.Random(digest("scored strings"))
    strings: list[list[Clip]] = []
    for own in by_speaker(clips).values():
        for _ in range(ROUNDS):
            left = made.sample(own, len(own))
            while len(left) >= SHORTEST:
                count = made.randint(SHORTEST, LONGEST)
                strings.append(left[:count])
                left = left[count:]
    made.shuffle(strings)
    turns = chain.from_iterable(zip_longest([[clip] for clip in clips], strings))
    return [example(one) for one in turns if one]


def by_speaker(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    speakers: dict[str, list[Clip]] = {}
    for clip in clips:
        speakers.setdefault(clip.speaker, []).append(clip)
    return speakers


def pair(clips: Sequence[Clip]) -> tuple[Symbols, Symbols]:
    """Sound and digits of some recordings end to end."""
    return slots(torch.cat([clip.frames for clip in clips])), tuple(clip.digit for clip in clips)


def example(clips: Sequence[Clip]) -> Example:
    source, target = pair(clips)
    numbers = "+".join(f"{clip.digit}_{clip.number}" for clip in clips)
    return Example(f"{clips[0].speaker} {numbers}", source, (target,))


def sound(text: str) -> Symbols:
    """The slots of a sound file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is empty, or longer than 30 s.
        ImportError: it is no WAV file and soundfile is not installed.
    """
    samples = read_audio(text)
    seconds = len(samples) / 16000
    if not 0.05 <= seconds <= MOST_SECONDS:
        raise ValueError(f"{text} has {seconds:.2f} s of sound; 0.05 to {MOST_SECONDS} s are allowed")
    return slots(strengths(samples))


def digit_scores(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> dict[str, float]:
    """How many single digits are right, and the digit error rate of the strings: edits over digits; in percent.

    Args:
        outputs: one output an example.
        references: one reference for each of the same examples; that of a single digit has one symbol.

    Returns:
        {"accuracy": percent, "der": percent, "words": count of examples}.

    Raises:
        ValueError: outputs and references do not pair, or there is no single digit or no string among them.
    """
    check_paired(outputs, references)
    pairs = [(output, accepted[0]) for output, accepted in zip(outputs, references, strict=True)]
    single = [output == wanted for output, wanted in pairs if len(wanted) == 1]
    edits = [(edit_distance(output, wanted), len(wanted)) for output, wanted in pairs if len(wanted) > 1]
    if not single or not edits:
        raise ValueError(
            f"{len(single)} single digits and {len(edits)} strings were given; at least 1 of each is needed"
        )
    wrong, digits = map(sum, zip(*edits, strict=True))
    return {"accuracy": 100.0 * sum(single) / len(single), "der": 100.0 * wrong / digits, "words": len(pairs)}


TASK = Task(
    name="spoken_digits",
    summary="Spoken digits to digits: single ones (accuracy), strings of three to six (digit error rate)",
    dataset=SPLIT,
    load=load,
    symbols=sound,
    score=digit_scores,
    metric="der",  # nearly all single digits are right long before strings are
    columns=("accuracy", "der"),
    published=PUBLISHED,
    longest_output=16,
    unit="recordings and strings",
    caveat="published figures are of single digits alone",
    recipes={
        "quick": {
            "batch_size": 32,
            "lr": 2e-3,
            "minutes": 6.0,
            "weight_decay": 0.05,
            "ema": 0.998,
            "dev_words": 0,
            "model": {
                "transformer": {
                    "d_model": 128,
                    "encoder_layers": 3,
                    "decoder_layers": 1,
                    "nheads": 4,
                    "d_ff": 256,
                    "dropout": 0.2,
                },
                "gru-attention": {"d_model": 128, "layers": 2, "dropout": 0.2},
            },
        },
    },
)
