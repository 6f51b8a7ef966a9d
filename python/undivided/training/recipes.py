"""From a task's recipe to the settings of a training, and from settings to the command that makes them again."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tasks import Task, task
from .checkpoint import BEST
from .models import KINDS
from .settings import Settings, choose_device, choose_dtype

BUDGETS = ("minutes", "steps")
# What a command does not say as a setting of its own name, or does not say because it is the machine's.
_OTHERWISE = (
    "task",
    "model",
    "device",
    "dtype",
    "parallel",
    "tensorboard",
    "start",
    "changed",
    "model_options",
    *BUDGETS,
)


def default_recipe(chosen: Task, device: str, finetuning: bool = False) -> str:
    """The recipe of who asks for none: a task without one for GPUs has one for CPUs, and so with fine-tuning."""
    if finetuning:
        return "finetune" if "finetune" in chosen.recipes else "quick"
    return "full" if device.startswith("cuda") and "full" in chosen.recipes else "quick"


def recipe_of(chosen: Task, name: str) -> dict[str, Any]:
    """A copy of the task's recipe of that name.

    Raises:
        ValueError: there is none; the text lists the names.
    """
    if name not in chosen.recipes:
        raise ValueError(f"recipe {name!r} is unknown for {chosen.name}; allowed: {', '.join(chosen.recipes)}")
    return dict(chosen.recipes[name])


def settings_from(
    chosen: Task,
    recipe: Mapping[str, Any],
    kind: str,
    options: Mapping[str, Any],
    device: str = "auto",
    dtype: str = "auto",
    **given: Any,
) -> Settings:
    """The recipe's settings, changed by what is given; `options` are of the model's config.

    Raises:
        ValueError: see `Settings` and `choose_device`.
    """
    replaced = any(given.get(name) is not None for name in BUDGETS)
    kept = {key: value for key, value in recipe.items() if key != "model" and not (replaced and key in BUDGETS)}
    device = choose_device(device)
    made: dict[str, Any] = {"model": kind, "device": device, "dtype": choose_dtype(dtype, device)}
    return Settings(task=chosen.name, **{**kept, **given, **made, "model_options": dict(options)})


def settings_for(
    chosen: Task,
    model: str = "transformer",
    recipe: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> Settings:
    """Those of a recipe of the task for a kind of model; without `recipe`, of the one for the device.

    Raises:
        ValueError: see `recipe_of` and `settings_from`.
    """
    found = recipe_of(chosen, recipe or default_recipe(chosen, choose_device(device)))
    sizes = {**found.get("model", {}).get(model, {}), **(options or {})}
    return settings_from(chosen, found, model, sizes, device, dtype, **given)


def command_of(settings: Settings) -> str:
    """The shortest command that trains with these settings on a device of that kind; it always says the budget.

    A checkpoint that was started from is called runs/NAME, wherever it lies, as the machine is not part of a recipe.
    """
    chosen = task(settings.task)
    usual = default_recipe(chosen, settings.device, settings.start is not None)
    found = []
    for name in chosen.recipes:
        words = [] if name == usual else ["--recipe", name]
        found.append(words + _differences(settings, recipe_of(chosen, name)))
    words = min(found, key=len)
    (name,) = (one for one in BUDGETS if getattr(settings, one) is not None)
    budget = [f"--{name}", _text(getattr(settings, name))]
    if settings.start is not None:
        return shlex.join(["undivided", "finetune", chosen.name, "--from", _folder(settings.start), *budget, *words])
    model = [] if settings.model == "transformer" else ["--model", settings.model]
    return shlex.join(["undivided", "train", chosen.name, *model, *budget, *words])


def _differences(settings: Settings, recipe: dict[str, Any]) -> list[str]:
    """Options for what the recipe has otherwise, without the budget."""
    budget: dict[str, Any] = {"steps": settings.steps, "minutes": settings.minutes}
    sizes = recipe.get("model", {}).get(settings.model, {})
    base = settings_from(task(settings.task), recipe, settings.model, sizes, "cpu", **budget)
    words = []
    for one in dataclasses.fields(Settings):
        value = getattr(settings, one.name)
        if one.name not in _OTHERWISE and value != getattr(base, one.name):
            words += [f"--{one.name.replace('_', '-')}", _text(value)]
    if settings.dtype != choose_dtype("auto", settings.device):
        words += ["--dtype", settings.dtype]
    # Without --set, a model that is fine-tuned has the sizes of the one that it starts from.
    row = KINDS[settings.model]
    config = getattr(importlib.import_module(row.module), row.config)
    usual = {one.name: one.default for one in dataclasses.fields(config)} | dict(sizes)
    for name, value in settings.model_options.items():
        own = value != usual.get(name) if settings.start is None else name in settings.changed
        if own and name not in row.fixed:
            words += ["--set", f"{name}={_text(value)}"]
    return words


def _text(value: Any) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _folder(start: str) -> str:
    path = Path(start)
    return str(Path("runs") / (path.parent.name if path.name == BEST else path.name))
