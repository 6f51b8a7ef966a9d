"""A model in a folder: `model.safetensors` for the weights, `config.json` for what it is made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from .config import Config
from .heads import CausalLM, SequenceClassifier, TokenClassifier
from .huggingface import FAMILIES
from .model import Transformer

MODELS = {model.__name__: model for model in (Transformer, SequenceClassifier, TokenClassifier, CausalLM)}
FAMILIES_BY_NAME: dict[str, type[Config]] = {family.__name__: family for family in FAMILIES.values()}
CONFIGS = {Config.__name__: Config} | FAMILIES_BY_NAME
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(model: nn.Module, folder: str | Path) -> None:
    """Writes the weights and the config of one of this package's models.

    Raises:
        TypeError: it is another kind of module.
    """
    name = type(model).__name__
    if MODELS.get(name) is not type(model):
        raise TypeError(f"{name} cannot be saved; allowed: {', '.join(MODELS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {"model": name, "family": type(model.config).__name__}
    config = made_from | dataclasses.asdict(model.config)  # type: ignore[call-overload]
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_model(model, str(folder / WEIGHTS))  # unlike save_file it knows weights with two names


def load(folder: str | Path) -> nn.Module:
    """The saved model, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, or they do not belong together.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there; a saved model is a folder with {CONFIG}, {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        kind, family = MODELS[config.pop("model")], CONFIGS[config.pop("family", Config.__name__)]
        model = kind(family(**config))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} is not a model's config: {error!r}") from error
    try:
        load_model(model, folder / WEIGHTS)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not hold this model's weights: {error}") from error
    return model.eval()
