"""The kinds of model that can be trained, and the file that one is kept in."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..tasks import Task, Vocabulary, task
from .checkpoint import BEST, write_atomically

METADATA = "undivided"


@dataclass(frozen=True)
class Kind:
    """A row of the table of models: the module, its config dataclass (`src_vocab`, `tgt_vocab` and options), its class.

    A model is made by `model(config)`, is called as `model(src, tgt, src_lengths=, tgt_lengths=)` for logits and has
    `generate` and `config`.
    """

    module: str
    config: str
    model: str


KINDS = {"transformer": Kind("undivided.transformer", "Config", "Transformer")}


@dataclass(frozen=True)
class SavedModel:
    """What a model file holds. `about` is plain data: the training's settings, step, scores and split."""

    model: nn.Module
    kind: str
    task: Task
    source: Vocabulary
    target: Vocabulary
    about: dict[str, Any]


def build(kind: str, source_size: int, target_size: int, options: Mapping[str, Any]) -> nn.Module:
    """A new model with random weights.

    Raises:
        ValueError: the kind or an option is unknown; the text lists those that are.
    """
    if kind not in KINDS:
        raise ValueError(f"model={kind!r} is unknown; allowed: {', '.join(KINDS)}")
    row = KINDS[kind]
    module = importlib.import_module(row.module)
    config = getattr(module, row.config)
    allowed = [field.name for field in dataclasses.fields(config)]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of the {kind}'s config; allowed: {', '.join(allowed)}")
    return getattr(module, row.model)(config(src_vocab=source_size, tgt_vocab=target_size, **options))


def save_model(
    path: Path,
    model: nn.Module,
    kind: str,
    task_name: str,
    source: Vocabulary,
    target: Vocabulary,
    about: dict[str, Any],
) -> None:
    """Writes weights, config, vocabularies and `about` to one safetensors file."""
    fields = dataclasses.asdict(model.config)  # type: ignore[call-overload]
    config = {key: value for key, value in fields.items() if key not in SIZES}
    header = {
        "kind": kind,
        "task": task_name,
        "config": config,
        "source": source.symbols,
        "target": target.symbols,
        "about": about,
    }
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary, {METADATA: json.dumps(header)}))


def load_model(path: str | Path, device: str = "cpu") -> SavedModel:
    """Reads a model file, or the best model of a run's folder; the model is in evaluation mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a model file of this package.
    """
    path = Path(path)
    if path.is_dir():
        path = path / BEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; a run writes it at its first development score")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if METADATA not in metadata:
        raise ValueError(f"{path} was not written by undivided train: its header has no entry {METADATA!r}")
    header = json.loads(metadata[METADATA])
    source, target = Vocabulary(header["source"]), Vocabulary(header["target"])
    model = build(header["kind"], len(source), len(target), header["config"])
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
    model.to(device).eval()
    return SavedModel(model, header["kind"], task(header["task"]), source, target, header["about"])


SIZES = ("src_vocab", "tgt_vocab")
