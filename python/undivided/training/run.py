"""Train, evaluate and predict in a line each, on every task and with every kind of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..memory import keep_freed_memory
from ..tasks import task
from .checkpoint import BEST, LAST
from .inference import Symbols, answer
from .log import Display
from .models import SavedModel, load_model
from .recipes import settings_for
from .session import prepare
from .world import join


def train(
    name: str,
    out: str | Path,
    *,
    model: str = "transformer",
    recipe: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    data: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **given: Any,
) -> SavedModel:
    """Trains on the task `name` and gives the best model, which is also kept in the folder `out`.

    As `undivided train` does: `recipe` is one of the task's (default: the one for the device), `options` are fields of
    the model's config, `given` are fields of `Settings`, such as `minutes`, `steps`, `lr` or `seed`; `data` is a folder
    with the data. Under torchrun all processes make the call, and have the model.

    Raises:
        ValueError: the task, the recipe, the kind of model, a field or a value is unknown or out of range.
        FileExistsError: `out` holds a run.
        DataNotFound, DataDamaged: see `undivided.tasks.find`.
    """
    chosen, out = task(name), Path(out)
    settings = settings_for(chosen, model, recipe, device, dtype, options, **given)
    if any((out / one).exists() for one in (LAST, BEST)):
        raise FileExistsError(f"{out} holds a run; give another folder, or load_model({str(out)!r})")
    keep_freed_memory()
    with join(settings.device) as world:
        trainer = prepare(chosen, settings, chosen.load(data), out, world=world)
        result = trainer.run(Display(f"{chosen.name} {model}", chosen.metric, quiet=quiet or not world.main))
    if result.interrupted:
        raise KeyboardInterrupt
    return load_model(out / BEST, settings.device)


def evaluate(saved: SavedModel, data: str | Path | None = None, part: str = "test") -> dict[str, float]:
    """The model's scores on the test or the development examples ("dev") of its task.

    Raises:
        ValueError: there is no such part.
        DataNotFound, DataDamaged: see `undivided.tasks.find`.
    """
    if part not in ("test", "dev"):
        raise ValueError(f"part={part!r} is unknown; allowed: test, dev")
    found = saved.task.load(data)
    examples = found.test if part == "test" else found.dev
    answers = answers_to(saved, [one.source for one in examples])
    return saved.task.score(answers, [one.references for one in examples])


def predict(saved: SavedModel, texts: Sequence[str]) -> list[Symbols]:
    """The answer to every text, as its task has it: phonemes, a tag for every word, one label.

    Raises:
        ValueError: a text is no input of the task; the text says what is.
    """
    return answers_to(saved, [saved.task.symbols(text) for text in texts])


def answers_to(saved: SavedModel, inputs: Sequence[Symbols]) -> list[Symbols]:
    keep_freed_memory()
    return answer(saved.model, saved.task, saved.source, saved.target, inputs, beams=saved.task.beams)
