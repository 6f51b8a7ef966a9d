"""Everything that decides how a training goes, as data that a checkpoint carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from .parallel import PARALLEL
from .schedule import SCHEDULES, Budget, Schedule

BATCHES = ("padded", "packed")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """One training. `steps` or `minutes` is the budget; `model_options` override fields of the model's config.

    A batch is `batch_size` pairs of like length or, where `batch_tokens` is given, as many as have that number of
    symbols, source and target together; in `batches` that are "padded" the padding counts, "packed" ones have none.
    `accumulate` batches make one update, with the gradient of all of their targets together. `warmup` and `floor` are
    parts of the budget and of `lr`, which falls as `lr_decay` says; `clip` is the largest norm of the gradient (0: no
    limit); `ema` is the decay of the averaged weights that are scored and kept (None: the weights themselves);
    `evaluations` spreads that many development scores, on `dev_words` examples (0: all), evenly over the budget; after
    `patience` scores in a row that are no better than the best, the training ends (None: never). A checkpoint is
    written with each score, after `checkpoint_seconds` and after `checkpoint_steps` updates (None: by the clock alone).

    For the processes of torchrun, `parallel` is "ddp" (as is None), all weights on each, or "fsdp", a part on each.

    For fine-tuning: `start` is the checkpoint that the weights came from, the lowest `freeze` layers stay as they were,
    and each layer learns `layer_rate` times as fast as the one above it (Howard, Ruder 2018); `changed` names the model
    options that are not those of the checkpoint.

    Raises:
        ValueError: a value is out of range; the text gives it and the range.
    """

    task: str
    model: str = "transformer"
    steps: int | None = None
    minutes: float | None = None
    batches: str = "padded"
    batch_size: int = 128
    batch_tokens: int | None = None
    accumulate: int = 1
    lr: float = 3e-3
    lr_decay: str = "cosine"
    warmup: float = 0.05
    floor: float = 0.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    clip: float = 1.0
    ema: float | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    evaluations: int = 10
    dev_words: int = 500
    log_every: int = 20
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    patience: int | None = None
    tensorboard: bool = False
    parallel: str | None = None
    start: str | None = None
    freeze: int = 0
    layer_rate: float = 1.0
    changed: list[str] = field(default_factory=list)
    model_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype == "float16":
            raise ValueError("dtype='float16' would need loss scaling; use bfloat16 or float32 to train")
        words = {"lr_decay": tuple(SCHEDULES), "batches": BATCHES, "parallel": (None, *PARALLEL)}
        words["dtype"] = tuple(name for name in DTYPES if name != "float16")
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(one for one in allowed if one)
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; allowed: {names}")
        _ = self.budget, self.schedule
        lowest = {"batch_size": 1, "accumulate": 1, "evaluations": 1, "log_every": 1, "patience": 1}
        lowest |= {"batch_tokens": 1, "checkpoint_steps": 1, "dev_words": 0, "clip": 0, "freeze": 0}
        lowest |= {"weight_decay": 0, "checkpoint_seconds": 0, "seed": -(2**63)}
        highest = {"batch_size": 2**31 - 1, "batch_tokens": 2**31 - 1, "seed": 2**64 - 1}  # a seed as torch takes it
        for name, low in lowest.items():
            value, high = getattr(self, name), highest.get(name, math.inf)
            if value is not None and not low <= value <= high:  # so NaN is refused
                most = f" and at most {high}" if name in highest else ""
                raise ValueError(f"{name}={value} must be at least {low}{most}")
        if math.isinf(self.weight_decay):
            raise ValueError(f"weight_decay={self.weight_decay} must be finite")
        if not 0 < self.layer_rate <= 1:
            raise ValueError(f"layer_rate={self.layer_rate} must be above 0 and at most 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema} must be above 0 and below 1, or be left out")

    @property
    def budget(self) -> Budget:
        return Budget(self.steps, self.minutes)

    @property
    def schedule(self) -> Schedule:
        return SCHEDULES[self.lr_decay](self.lr, self.warmup, self.floor)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**asdict(self), "model_options": dict(self.model_options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a name is unknown, so the checkpoint comes from another version.
        """
        unknown = values.keys() - {one.name for one in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}: another version wrote this checkpoint")
        return cls(**values)


def choose_device(asked: str = "auto") -> str:
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: the device is unknown, or is a GPU that is not there.
    """
    gpu = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if gpu else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ValueError(f"device={asked!r} is unknown; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={asked!r} is not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (not gpu or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device={asked!r} is not there; torch sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
    return asked


def choose_dtype(asked: str, device: str) -> str:
    """`auto` is bfloat16 on a GPU (compute under autocast, weights in float32) and float32 on a CPU."""
    if asked != "auto":
        return asked
    return "bfloat16" if device.startswith("cuda") else "float32"
