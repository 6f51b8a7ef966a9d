"""Small datasets in the shape of the published ones, which they stand in for in the table while a test runs."""

from __future__ import annotations

import dataclasses
import io
import math
import random
import tarfile
import wave
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from undivided.tasks import g2p_languages
from undivided.tasks.datasets import DATASETS

# Options of a model that learns a small dataset in seconds.
TINY = ["--set", "d_model=32", "--set", "nheads=2", "--set", "d_ff=64", "--device", "cpu", "--quiet", "--debug"]
TINY_PAIR = [*TINY, "--set", "encoder_layers=1", "--set", "decoder_layers=1", "--set", "dropout=0.0"]

SUFFIXES = {"ing": "VERB", "ly": "ADV", "ness": "NOUN", "ous": "ADJ"}
GOOD, BAD = ("splendid", "moving", "witty"), ("dull", "clumsy", "flat")


def write(folder: Path, name: str, contents: dict[str, bytes], patch: pytest.MonkeyPatch) -> None:
    """Files of the dataset `name` in `folder`, and their hashes in the table."""
    row, place = DATASETS[name], folder / name
    place.mkdir(parents=True)
    files = []
    for file in row.files:
        content = contents[file.name]
        (place / file.name).write_bytes(content)
        files.append(dataclasses.replace(file, sha256=file.digest(content), size=len(content)))
    patch.setitem(DATASETS, name, dataclasses.replace(row, files=tuple(files)))


@contextmanager
def standing_in(folder: Path, written: Callable[[Path, pytest.MonkeyPatch], None]) -> Iterator[pytest.MonkeyPatch]:
    """Within it the commands find what `written` puts into the folder, and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        written(folder, patch)
        patch.setenv("UNDIVIDED_DATA", str(folder))
        patch.setenv("UNDIVIDED_CACHE", str(folder / "cache"))
        yield patch


def tagged(made: random.Random, count: int) -> bytes:
    """Sentences of words that hardly ever come twice; their endings alone tell the tag, as letters do."""
    sentences = []
    for _ in range(count):
        endings = made.choices(list(SUFFIXES), k=made.randint(2, 8))
        stems = ("".join(made.choices("bcdfghklmnprst", k=5)) for _ in endings)
        sentences.append("\n".join(f"{a}{b}\t{SUFFIXES[b]}" for a, b in zip(stems, endings, strict=True)))
    return ("\n\n".join(sentences) + "\n").encode()


def review(made: random.Random, marks: tuple[str, ...], words: int) -> str:
    """Words that say nothing, one in six among them that does."""
    text = made.choices("the a film story actor scene of and with".split(), k=words)
    for _ in range(words // 6):
        text.insert(made.randint(0, words), made.choice(marks))
    return " ".join(text)


def zipped(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text.encode())
    return packed.getvalue()


def images(made: random.Random, count: int, side: int, top: int) -> bytes:
    """Images with one bright row; how bright says the label, so that it stays the same when the image is moved."""
    rows = []
    for number in range(count):
        label, row = number % min(side, 10), made.randrange(1, side - 1)
        pixels = [(label + 4) * top // 16 if n // side == row else 0 for n in range(side * side)]
        rows.append(",".join(map(str, (*pixels, label))))
    return ("\n".join(rows) + "\n").encode()


def languages(made: random.Random, train: int, scored: int) -> bytes:
    """Words of all languages; every language says them the same way, a letter at a time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder, names in (("medium", g2p_languages.MEDIUM), ("low", g2p_languages.LOW)):
            for language in names:
                words = list({"".join(made.choices("abdegk", k=made.randint(2, 5))): None for _ in range(3 * train)})
                parts = {
                    "train": words[:train],
                    "dev": words[train:][:scored],
                    "test": words[train + scored :][:scored],
                }
                for part, chosen in parts.items():
                    text = "".join(f"{word}\t{' '.join(word)}\n" for word in chosen).encode()
                    entry = tarfile.TarInfo(f"./{folder}/{language}_{part}.tsv")
                    entry.size = len(text)
                    tar.addfile(entry, io.BytesIO(text))
    return packed.getvalue()


OLD = "hath thou lo ye unto saith doth thine nay".split()
OLD_AND_NEW = dict(zip(OLD, "has you see all to says does your no".split(), strict=True))


def write_verses(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Verses of old words; each has one new word."""
    made, contents = random.Random(4), {}
    for part, count in (("Train", 200), ("Dev", 10), ("Test", 20)):
        verses = [made.choices(list(OLD_AND_NEW), k=made.randint(4, 9)) for _ in range(count)]
        contents[f"YLTToBBE.{part}.sourc"] = "".join(f"<BBE> {' '.join(verse)}\n" for verse in verses).encode()
        new = (" ".join(OLD_AND_NEW[word] for word in verse) for verse in verses)
        contents[f"YLTToBBE.{part}.tgt"] = "".join(f"{verse}\n" for verse in new).encode()
    write(folder, "bible-ylt-bbe", contents, patch)


def tone(digit: int, pitch: float, seconds: float, rate: int = 8000) -> bytes:
    """A digit that is spoken as a tone, 16-bit samples."""
    hertz = 200 * 1.35**digit * pitch  # up to 3 kHz
    return b"".join(
        round(9000 * math.sin(2 * math.pi * hertz * n / rate)).to_bytes(2, "little", signed=True)
        for n in range(round(seconds * rate))
    )


def wav(samples: bytes, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(samples)
    return file.getvalue()


def write_spoken_digits(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Two speakers say every digit twelve times, each at a pitch of their own."""
    made, packed = random.Random(6), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for (speaker, pitch), digit, number in product((("ann", 1.0), ("bob", 1.02)), range(10), range(12)):
            content = wav(tone(digit, pitch, made.uniform(0.12, 0.2)))
            entry = tarfile.TarInfo(f"recordings/{digit}_{speaker}_{number}.wav")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    write(folder, "free-spoken-digits", {"recordings.tar": packed.getvalue()}, patch)


def write_all(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every dataset but that of English pronunciations."""
    made = random.Random(3)
    parts = {"train": 300, "dev": 20, "test": 40}
    write(folder, "ud-english-ewt", {f"ewt_{part}.tsv": tagged(made, n) for part, n in parts.items()}, patch)
    lines = {kind: [review(made, marks, 6) for _ in range(300)] for kind, marks in (("pos", GOOD), ("neg", BAD))}
    files = {f"sentence_polarity/rt-polarity.{kind}": "\n".join(texts) for kind, texts in lines.items()}
    write(folder, "sentence-polarity", {"sentence_polarity.zip": zipped(files)}, patch)
    files = {
        f"movie_reviews/{kind}/cv{number:03}.txt": review(made, marks, made.randint(20, 90))
        for kind, marks in (("pos", GOOD), ("neg", BAD))
        for number in range(120)
    }
    write(folder, "movie-reviews", {"movie_reviews.zip": zipped(files | {"movie_reviews/README": "no review"})}, patch)
    write(folder, "digits", {"digits.csv": images(made, 200, 8, 16)}, patch)
    write(folder, "mnist-5k", {"mnist_5k.csv": images(made, 60, 28, 255)}, patch)
    write(folder, "sigmorphon-2021-g2p", {"data.tar": languages(made, 40, 10)}, patch)
