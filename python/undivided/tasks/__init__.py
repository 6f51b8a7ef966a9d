"""Real data in, batches out, and what others scored on it. A new task is a module and a row here."""

from __future__ import annotations

from . import g2p
from .base import PairData, PublishedRow, Task
from .vocabulary import BEGIN, END, PAD, Vocabulary, pad

TASKS: dict[str, Task] = {task.name: task for task in (g2p.TASK,)}

__all__ = ["BEGIN", "END", "PAD", "TASKS", "PairData", "PublishedRow", "Task", "Vocabulary", "pad", "task"]


def task(name: str) -> Task:
    """The row called `name`.

    Raises:
        ValueError: there is none; the text lists the names.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; allowed: {', '.join(TASKS)}")
    return TASKS[name]
