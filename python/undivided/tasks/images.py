"""Handwritten digits, read one pixel at a time from the top left (N to 1): `digits` (8 x 8) and `mnist` (28 x 28)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional

from .base import N_TO_1, Example, PairData, PublishedRow, Symbols, Task
from .datasets import DATASETS
from .find import find, read_text
from .metrics import label_accuracy
from .splits import digest
from .vocabulary import Vocabulary

DIGITS_SPLIT, MNIST_SPLIT = "digits", "mnist-5k"
LEVELS = 17  # brightness from 0 to 16, as the smaller set has it
DIGITS_TOP, MNIST_TOP = 16, 255  # the brightest pixel of each set
LABELS = tuple("0123456789")
DEV_ONE_IN, TEST_ONE_IN = 10, 5
# How a training image is moved (pixels down, pixels right) and turned (degrees): every combination is one more image.
MOVES = ((0.0, 0.0), (0.0, 0.75), (0.0, -0.75), (0.75, 0.0), (-0.75, 0.0))
TURNS = (0.0, 12.0, -12.0)

# The recurrent models answer from their last state alone: the pixels of the top row must live through all steps.
MODELS = {
    "transformer": {
        "d_model": 64,
        "encoder_layers": 2,
        "nheads": 4,
        "d_ff": 128,
        "positions": "sinusoidal",
    },
    "rnn": {"d_model": 128, "layers": 2, "pooling": "last"},
    **{cell: {"d_model": 64, "layers": 2, "pooling": "last"} for cell in ("gru", "lstm")},
}

Image = tuple[int, ...]
Rows = list[tuple[Image, str]]

# The first half trains and the second half tests, as in the example of scikit-learn's gallery.
DIGITS_PUBLISHED = (
    PublishedRow("support vector classifier", {"accuracy": 96.89}, "scikit-learn's gallery; measured again"),
)


def load_digits(data: str | Path | None = None) -> PairData:
    """The split of scikit-learn's gallery; every training image also moved and turned a little.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    rows = list(read(DIGITS_SPLIT, data))
    half = len(rows) // 2
    dev = [row for number, row in enumerate(rows[:half]) if number % DEV_ONE_IN == 0]
    train = [row for number, row in enumerate(rows[:half]) if number % DEV_ONE_IN]
    images, labels = [image for image, _ in train], [label for _, label in train]
    moved = [
        (image, label)
        for way in product(MOVES, TURNS)
        for image, label in zip(warped(images, *way), labels, strict=True)
    ]
    return make_data(moved, dev, rows[half:], DIGITS_TOP, DIGITS_SPLIT, comparable=True)


def load_mnist(data: str | Path | None = None) -> PairData:
    """One image in five is held out for the test, one in ten of the others for development.

    The file has one digit after the other; here they are mixed, so that the first examples of a part stand for all.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    parts: dict[str, Rows] = {"train": [], "dev": [], "test": []}
    rows = ((digest(" ".join(map(str, image))), image, label) for image, label in read(MNIST_SPLIT, data))
    for number, image, label in sorted(rows):
        held = "dev" if number // TEST_ONE_IN % DEV_ONE_IN == 0 else "train"
        parts["test" if number % TEST_ONE_IN == 0 else held].append((image, label))
    return make_data(parts["train"], parts["dev"], parts["test"], MNIST_TOP, MNIST_SPLIT, comparable=False)


def read(name: str, data: str | Path | None) -> Iterator[tuple[Image, str]]:
    """(pixels, label) of every line; the label is its last number."""
    (path,) = find(DATASETS[name], data).values()
    for line in read_text(path).splitlines():
        *pixels, label = (int(float(value)) for value in line.split(","))
        yield tuple(pixels), str(label)


def make_data(train: Rows, dev: Rows, test: Rows, top: int, split: str, comparable: bool) -> PairData:
    source, target = Vocabulary(map(str, range(LEVELS))), Vocabulary(LABELS)
    pairs = [(levels(image, top), (label,)) for image, label in train]
    return PairData(source, target, pairs, examples("dev", dev, top), examples("test", test, top), split, comparable)


def examples(part: str, rows: Rows, top: int) -> list[Example]:
    """An image has no text to show, so it is shown by its number."""
    return [Example(f"{part} {number}", levels(image, top), ((label,),)) for number, (image, label) in enumerate(rows)]


def levels(image: Image, top: int) -> Symbols:
    """The nearest of the steps of brightness of each pixel from 0 (black) to `top` (white)."""
    return tuple(str((value * (LEVELS - 1) + top // 2) // top) for value in image)


def warped(images: list[Image], move: tuple[float, float], turn: float) -> list[Image]:
    """Square images moved by (pixels down, pixels right) after being turned clockwise by degrees about their middle.

    Between pixels it is interpolated; what comes in from outside is black.
    """
    side = round(len(images[0]) ** 0.5)
    square = torch.tensor(images, dtype=torch.float32).view(-1, 1, side, side)
    (down, right), angle = move, math.radians(turn)
    # The grid says where each pixel comes from, on axes from -1 to 1: the inverse of the movement.
    x, y = -2 * right / side, -2 * down / side
    cos, sin = math.cos(angle), math.sin(angle)
    theta = torch.tensor([[cos, sin, cos * x + sin * y], [-sin, cos, cos * y - sin * x]])
    grid = functional.affine_grid(theta.expand(len(images), 2, 3), list(square.shape), align_corners=False)
    out = functional.grid_sample(square, grid, align_corners=False).round().int()
    return [tuple(image) for image in out.flatten(1).tolist()]


def pixels(text: str, top: int) -> Symbols:
    """Numbers from 0 (black) to `top` (white), row by row, between spaces or commas.

    Raises:
        ValueError: one is no such number, or they make no square.
    """
    found = text.replace(",", " ").split()
    wrong = [word for word in found if not word.isdecimal() or int(word) > top]
    side = round(len(found) ** 0.5)
    if wrong or not found or side * side != len(found):
        raise ValueError(
            f"an image is a square of numbers from 0 to {top}; given {len(found)} words"
            + (f", among them {wrong[0]!r}" if wrong else "")
        )
    return levels(tuple(map(int, found)), top)


TASK = Task(
    name="digits",
    summary="Handwritten digits of 8 x 8 pixels, read as 64 symbols",
    dataset=DIGITS_SPLIT,
    load=load_digits,
    symbols=partial(pixels, top=DIGITS_TOP),
    score=label_accuracy,
    metric="accuracy",
    columns=("accuracy",),
    published=DIGITS_PUBLISHED,
    shape=N_TO_1,
    higher_is_better=True,
    unit="images",
    recipes={
        "quick": {
            "batch_size": 32,
            "lr": 3e-3,
            "minutes": 2.0,
            "weight_decay": 0.05,
            "ema": 0.995,
            "dev_words": 0,
            "model": MODELS,
        },
    },
)

MNIST_TASK = Task(
    name="mnist",
    summary="Handwritten digits of 28 x 28 pixels, read as 784 symbols",
    dataset=MNIST_SPLIT,
    load=load_mnist,
    symbols=partial(pixels, top=MNIST_TOP),
    score=label_accuracy,
    metric="accuracy",
    columns=("accuracy",),
    published=(),
    shape=N_TO_1,
    higher_is_better=True,
    unit="images",
    recipes={
        "quick": {
            "batch_size": 16,
            "lr": 1e-3,
            "minutes": 10.0,
            "weight_decay": 0.05,
            "ema": 0.99,
            "evaluations": 5,
            "dev_words": 0,
            "model": MODELS,
        },
    },
)
