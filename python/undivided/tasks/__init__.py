"""Real data in, batches out, and what others scored on it. A new task is a module and a row here."""

from __future__ import annotations

from . import bible, g2p, g2p_languages, images, pos, pretraining, sentiment, spoken_digits
from .base import LEFT_TO_RIGHT, N_TO_1, N_TO_M, N_TO_N, Example, PairData, PublishedRow, Task
from .headers import from_header, to_header
from .vocabulary import BEGIN, END, PAD, Vocabulary, Words, pad

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        g2p.TASK,
        pos.TASK,
        sentiment.TASK,
        sentiment.REVIEWS,
        images.TASK,
        images.MNIST_TASK,
        g2p_languages.MEDIUM_TASK,
        *g2p_languages.LOW_TASKS,
        bible.TASK,
        spoken_digits.TASK,
        *pretraining.TASKS,
    )
}

# Several tasks under one name, for what is done with each of them.
GROUPS: dict[str, tuple[str, ...]] = {"g2p_lowres": tuple(one.name for one in g2p_languages.LOW_TASKS)}

__all__ = [
    "BEGIN",
    "END",
    "GROUPS",
    "LEFT_TO_RIGHT",
    "N_TO_1",
    "N_TO_M",
    "N_TO_N",
    "PAD",
    "TASKS",
    "Example",
    "PairData",
    "PublishedRow",
    "Task",
    "Vocabulary",
    "Words",
    "from_header",
    "pad",
    "task",
    "to_header",
]


def task(name: str) -> Task:
    """The row called `name`.

    Raises:
        ValueError: there is none; the text lists the names.
    """
    if name in GROUPS:
        raise ValueError(f"{name} is a group of tasks, one of them is needed here: {', '.join(GROUPS[name])}")
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; allowed: {', '.join(TASKS)}")
    return TASKS[name]
