"""The trainer: one loop for every task and model, exact to resume, with the budget in updates or in minutes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tasks import N_TO_M
from .batches import Batch, Batches, Examples
from .checkpoint import BEST, LAST, LOG, random_state, restore_random, save_training
from .finetuning import rates
from .log import Display, open_log
from .settings import DTYPES, Settings
from .shapes import SHAPES, Shape

Scores = dict[str, float]


@dataclass(frozen=True)
class Result:
    """How a training ended. `best` holds the development scores of the checkpoint that was kept."""

    steps: int
    seconds: float
    best: Scores
    interrupted: bool


class Trainer:
    """Trains `model` on `examples` until the budget of `settings` is spent.

    Args:
        settings: see `Settings`.
        model: of the kind that `shape` calls.
        examples: the pairs, on the device of the training.
        score: gives the development scores of a model; `metric` names the one that counts.
        save_best: `save_best(path, model, about)` writes a model that can be used; `about` is plain data.
        out: the folder for `last.pt`, `best.safetensors` and `log.jsonl`.
        state: what a `last.pt` held, to go on from there.
        better: `better(a, b)` says whether scores a are better than b; by default those with the lower `metric` are.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        examples: Examples,
        score: Callable[[nn.Module], Scores],
        metric: str,
        save_best: Callable[[Path, nn.Module, dict[str, Any]], None],
        out: Path,
        state: dict[str, Any] | None = None,
        shape: Shape = SHAPES[N_TO_M],
        better: Callable[[Scores, Scores], bool] | None = None,
    ) -> None:
        self.settings, self.model, self.out = settings, model.to(settings.device), out
        self.score, self.save_best, self.shape = score, save_best, shape
        self.better = better or (lambda a, b: a[metric] < b[metric])
        self.optimizer = make_optimizer(model, settings)
        self.batches = Batches(examples, settings.batch_size, settings.seed)
        self.average = {k: v.clone() for k, v in model.state_dict().items()} if settings.ema else None
        self.step, self.spent, self.evaluated = 0, 0.0, 0
        self.best: Scores = {}
        self.unimproved = 0  # development scores since the best one
        # Losses since the last line of the log, summed on the device: reading one would make a GPU wait.
        self.loss_sum, self.loss_count, self.loss = torch.zeros((), device=settings.device), 0, float("nan")
        if state is not None:
            self._restore(state)
        self.log = open_log(out / LOG, state["log_position"] if state else 0, settings.tensorboard, self.step)

    def run(self, display: Display) -> Result:
        """Trains to the end of the budget, or to the first SIGINT; either way the last state is in `last.pt`."""
        settings = self.settings
        started, first_step, resumed_at = time.monotonic(), self.step, self.spent
        saved = started
        with stop_on_interrupt() as stopped, display:
            while True:
                self.spent = resumed_at + time.monotonic() - started
                fraction = settings.budget.fraction(self.step, self.spent)
                if int(fraction * settings.evaluations) > self.evaluated:
                    self.evaluated = int(fraction * settings.evaluations)
                    self._evaluate(display)
                    self.spent = resumed_at + time.monotonic() - started
                    saved = self._save()
                if fraction >= 1 or stopped() or self._hopeless():
                    break
                self.update(settings.schedule.rate(fraction))
                if self.step % settings.log_every == 0:
                    self._log_losses(fraction)
                    seconds = max(time.monotonic() - started, 1e-9)
                    display.step(fraction, self.step, self.loss, (self.step - first_step) / seconds)
                if time.monotonic() - saved >= settings.checkpoint_seconds:
                    self.spent = resumed_at + time.monotonic() - started
                    saved = self._save()
        interrupted = settings.budget.fraction(self.step, self.spent) < 1 and not self._hopeless()
        self._save()
        self.log.close()
        return Result(self.step, self.spent, self.best, interrupted)

    def _hopeless(self) -> bool:
        return self.settings.patience is not None and self.unimproved >= self.settings.patience

    def update(self, rate: float) -> None:
        """One update of the weights at this learning rate, from the next batches."""
        settings = self.settings
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("part", 1.0)
        batches = [next(self.batches) for _ in range(settings.accumulate)]
        tokens = sum(batch.tokens for batch in batches)
        for batch in batches:
            loss = self._loss(batch) * (batch.tokens / tokens)
            loss.backward()
            self.loss_sum += loss.detach()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_count += 1
        if self.average is not None and settings.ema:
            # The early average forgets faster, or the random start would stay in it for 1 / (1 - ema) updates.
            update_average(self.average, self.model, min(settings.ema, (1 + self.step) / (10 + self.step)))

    def _loss(self, batch: Batch) -> Tensor:
        with autocast(self.settings):
            logits = self.shape.logits(self.model, batch)
        return token_loss(logits, batch, self.settings.label_smoothing)

    def _log_losses(self, fraction: float) -> None:
        self._check_finite()
        self.loss = float(self.loss_sum) / max(self.loss_count, 1)
        self.loss_sum.zero_()
        self.loss_count = 0
        rate = self.optimizer.param_groups[-1]["lr"]  # that of the top layer
        self.log.write(
            kind="train",
            step=self.step,
            epoch=self.batches.epoch,
            loss=self.loss,
            lr=rate,
            seconds=round(self.spent, 3),
        )

    def _check_finite(self) -> None:
        total = float(self.loss_sum)
        if not abs(total) < float("inf"):
            raise ValueError(f"the loss is {total} at update {self.step}: lower --lr ({self.settings.lr}) or --clip")

    def _evaluate(self, display: Display) -> None:
        self._check_finite()
        with self._averaged():
            self.model.eval()
            with torch.no_grad(), autocast(self.settings):
                scores = self.score(self.model)
            self.unimproved += 1
            if not self.best or self.better(scores, self.best):
                self.best, self.unimproved = scores, 0
                about = {"step": self.step, "seconds": round(self.spent, 1), "dev": scores}
                self.save_best(self.out / BEST, self.model, {**about, "settings": self.settings.to_dict()})
        self.log.write(kind="dev", step=self.step, seconds=round(self.spent, 3), **scores)
        display.score(self.step, self.spent, self.loss, scores)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, where there are any."""
        if self.average is None:
            yield
            return
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _save(self) -> float:
        self._check_finite()  # a state that cannot go on must not replace one that can
        state = {
            "settings": self.settings.to_dict(),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "position": self.batches.position(),
            "step": self.step,
            "spent": self.spent,
            "evaluated": self.evaluated,
            "best": self.best,
            "unimproved": self.unimproved,
            "losses": (float(self.loss_sum), self.loss_count, self.loss),
            "log_position": self.log.position(),
        }
        save_training(self.out / LAST, state)
        return time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average = {key: value.to(self.settings.device) for key, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        restore_random(state["random"])
        self.batches.restore(state["position"])
        self.step, self.spent, self.evaluated = state["step"], state["spent"], state["evaluated"]
        self.best, self.unimproved = dict(state["best"]), state.get("unimproved", 0)
        total, self.loss_count, self.loss = state["losses"]
        self.loss_sum.fill_(total)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW (Loshchilov, Hutter 2019); matrices decay, biases and norm weights do not; frozen weights are left out.

    A group's `part` is its part of the learning rate.
    """
    groups: list[dict[str, Any]] = []
    for part, parameters in rates(model, settings.layer_rate):
        learning = [weight for weight in parameters if weight.requires_grad]
        matrices = [weight for weight in learning if weight.ndim >= 2]
        others = [weight for weight in learning if weight.ndim < 2]
        groups += [
            {"params": matrices, "weight_decay": settings.weight_decay, "part": part},
            {"params": others, "weight_decay": 0.0, "part": part},
        ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)


def token_loss(logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the targets that are no padding, in float32, as a 0-d tensor."""
    flat, targets = logits.flatten(0, 1).float(), batch.targets.flatten()
    total = functional.cross_entropy(flat, targets, ignore_index=0, reduction="sum", label_smoothing=label_smoothing)
    return total / batch.tokens


def autocast(settings: Settings) -> Any:
    """Mixed precision where the settings ask for less than float32; weights stay in float32."""
    if settings.dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(settings.device).type, dtype=DTYPES[settings.dtype])


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights; what is not floating point is copied."""
    current = model.state_dict()
    floating = [key for key, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[key] for key in floating], [current[key] for key in floating], 1 - decay)
    for key in average.keys() - set(floating):
        average[key].copy_(current[key])


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT only sets a flag, so that an update is finished; a second one raises as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
