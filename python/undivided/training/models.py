"""The kinds of model that can be trained, and the file that one is kept in."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..tasks import LEFT_TO_RIGHT, N_TO_1, N_TO_M, N_TO_N, Task, Vocabulary, from_header, task, to_header
from ..tasks.frames import Frames
from ..tasks.spelling import SpelledWords
from .checkpoint import BEST, write_atomically
from .frames import FrameEmbedding
from .spelling import WordEmbedding

METADATA = "undivided"
TYPES: dict[Any, tuple[Any, str]] = {"float": ((int, float), "a number"), "bool": (bool, "true or false")}


@dataclass(frozen=True)
class Kind:
    """A row of the table of models: the module, its config dataclass (`src_vocab`, `tgt_vocab` and options), a class
    for each shape of task, the options that the kind itself decides, and whether it takes packed batches.

    A model is made by `model(config)` and has `config`. From N to M it is called as `model(src, tgt, src_lengths=,
    tgt_lengths=)` for logits and has `generate`; otherwise it is called as `model(src, src_lengths=)`.
    """

    module: str
    config: str
    models: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    packs: bool = False


_HEADS = {N_TO_N: "TokenClassifier", N_TO_1: "SequenceClassifier"}

KINDS = {
    "transformer": Kind(
        "undivided.transformer",
        "Config",
        {N_TO_M: "Transformer", LEFT_TO_RIGHT: "NextToken", **_HEADS},
        packs=True,
    ),
    **{
        cell: Kind("undivided.baselines", "Config", {N_TO_M: "Seq2Seq", **_HEADS}, {"cell": cell})
        for cell in ("rnn", "gru", "lstm")
    },
    **{
        f"{cell}-attention": Kind("undivided.baselines", "Config", {N_TO_M: "AttentionSeq2Seq"}, {"cell": cell})
        for cell in ("gru", "lstm")
    },
}


@dataclass(frozen=True)
class SavedModel:
    """What a model file holds. `about` is plain data: the training's settings, step, scores and split."""

    model: nn.Module
    kind: str
    task: Task
    source: Vocabulary
    target: Vocabulary
    about: dict[str, Any]


def build(kind: str, shape: str, source: Vocabulary, target: Vocabulary, options: Mapping[str, Any]) -> nn.Module:
    """A new model with random weights for tasks of that shape.

    Raises:
        ValueError: the kind or an option is unknown, or the kind is not for this shape; the text lists those that are.
            Or an option's value is not allowed.
    """
    if kind not in KINDS:
        raise ValueError(f"model={kind!r} is unknown; allowed: {', '.join(KINDS)}")
    row = KINDS[kind]
    if shape not in row.models:
        fitting = ", ".join(name for name, one in KINDS.items() if shape in one.models)
        raise ValueError(f"model={kind!r} is not for tasks from {shape.replace('-', ' ')}; allowed: {fitting}")
    module = importlib.import_module(row.module)
    config = getattr(module, row.config)
    allowed = [one.name for one in dataclasses.fields(config)]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of the {kind}'s config; allowed: {', '.join(allowed)}")
    for name, value in row.fixed.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name}={options[name]!r} is another model than {kind}, whose {name} is {value}")
    for one in dataclasses.fields(config):  # the config itself checks whole numbers and words
        if one.name in options and one.type in TYPES and not isinstance(options[one.name], TYPES[one.type][0]):
            raise ValueError(f"{one.name}={options[one.name]!r} must be {TYPES[one.type][1]}")
    sizes = {"src_vocab": len(source), "tgt_vocab": len(target)}
    model = getattr(module, row.models[shape])(config(**sizes, **{**options, **row.fixed}))
    if isinstance(source, SpelledWords):
        model.encoder.embedding = WordEmbedding(len(source), model.config.d_model)
    if isinstance(source, Frames):
        model.encoder.embedding = FrameEmbedding(model.config.d_model)
    return model


def options_of(model: nn.Module) -> dict[str, Any]:
    """The fields of a model's config but for the sizes of its vocabularies."""
    fields = dataclasses.asdict(model.config)  # type: ignore[call-overload]
    return {key: value for key, value in fields.items() if key not in ("src_vocab", "tgt_vocab")}


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
    header = {
        "kind": kind,
        "task": task_name,
        "config": options_of(model),
        "source": to_header(source),
        "target": to_header(target),
        "about": about,
    }
    # Copies, since the format refuses one table under two names, which a shared embedding has.
    weights = {name: value.detach().contiguous().clone() for name, value in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary, {METADATA: json.dumps(header)}))


def load_model(path: str | Path, device: str = "cpu") -> SavedModel:
    """Reads a model file, or the best model of a run's folder; the model is in evaluation mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a model file of this package, or a damaged one.
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
    try:
        header = json.loads(metadata[METADATA])
        source, target, trained_on = from_header(header["source"]), from_header(header["target"]), task(header["task"])
        model = build(header["kind"], trained_on.shape, source, target, header["config"])
        model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
        saved = SavedModel(model, header["kind"], trained_on, source, target, header["about"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Of weights that do not fit, torch lists every one.
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"{path} does not hold a model that this version can read: {reason}") from error
    model.to(device).eval()
    return saved
