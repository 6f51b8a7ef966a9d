"""The trainer: one loop for every task and model, exact to resume, with the budget in updates or in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks import N_TO_M
from .batches import Batches, Examples, mixed_seed
from .checkpoint import BEST, LOG, random_state, restore_random
from .finetuning import rates
from .interrupt import stop_on_interrupt
from .log import Display, NoLog, open_log
from .loss import summed_loss
from .parallel import Alone, spread
from .settings import DTYPES, Settings
from .shapes import SHAPES, Shape
from .world import ALONE, World

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

    With the processes of `world`, each has its share of every batch, and the weights lie as `settings.parallel` says;
    all of them make the same calls. Rank 0 scores, writes and speaks, and its clock and its interrupts count.

    Args:
        settings: see `Settings`.
        model: of the kind that `shape` calls.
        examples: the pairs, on the device of the training.
        score: gives the development scores of a model; `metric` names the one that counts.
        save_best: `save_best(path, model, about)` writes a model that can be used; `about` is plain data.
        out: the folder for `last.pt` (and the shards that it names), `best.safetensors` and `log.jsonl`.
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
        world: World = ALONE,
    ) -> None:
        self.settings, self.out, self.world, self.metric = settings, out, world, metric
        self.score, self.save_best, self.shape = score, save_best, shape
        self.better = better or (lambda a, b: a[metric] < b[metric])
        self.spread: Alone = spread(model.to(settings.device), world, settings.parallel)
        self.model = self.spread.model
        self.optimizer = make_optimizer(self.model, settings)
        packed = settings.batches == "packed"
        self.batches = Batches(examples, settings.batch_size, settings.seed, settings.batch_tokens, packed, world)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()} if settings.ema else None
        self.step, self.spent, self.evaluated = 0, 0.0, 0
        self.best: Scores = {}
        self.unimproved = 0  # development scores since the best one
        # Losses since the last line of the log, summed on the device: reading one would make a GPU wait.
        self.loss_sum, self.loss_count, self.loss = torch.zeros((), device=settings.device), 0, float("nan")
        if not world.main:
            torch.manual_seed(mixed_seed(settings.seed, "rank", world.rank))  # ranks drop out unlike things
        if state is not None:
            self._restore(state)
        position = state["log_position"] if state else 0
        self.log = open_log(out / LOG, position, settings.tensorboard, self.step) if world.main else NoLog()

    def run(self, display: Display) -> Result:
        """Trains to the end of the budget, or to the first SIGINT; either way the last state is in `last.pt`."""
        settings = self.settings
        started, first_step, resumed_at = time.monotonic(), self.step, self.spent
        saved, saved_step = started, self.step
        if not self.world.main:
            display = Display("", self.metric, quiet=True)
        with stop_on_interrupt() as stopped, display:
            while True:
                late = time.monotonic() - saved >= settings.checkpoint_seconds
                now = (resumed_at + time.monotonic() - started, stopped(), late)
                self.spent, stop, late = self.world.from_main(now)
                fraction = settings.budget.fraction(self.step, self.spent)
                if due := int(fraction * settings.evaluations) > self.evaluated:
                    self.evaluated = int(fraction * settings.evaluations)
                    self._evaluate(display)
                    self.spent = resumed_at + time.monotonic() - started
                if due or late or self.step - saved_step == settings.checkpoint_steps:
                    self._save()
                    saved, saved_step = time.monotonic(), self.step
                if fraction >= 1 or stop or self._hopeless():
                    break
                self.update(settings.schedule.rate(fraction))
                if self.step % settings.log_every == 0:
                    self._log_losses()
                    seconds = max(time.monotonic() - started, 1e-9)
                    display.step(fraction, self.step, self.loss, (self.step - first_step) / seconds)
        self._save()
        self.log.close()
        return Result(self.step, self.spent, self.best, fraction < 1 and not self._hopeless())

    def _hopeless(self) -> bool:
        return self.settings.patience is not None and self.unimproved >= self.settings.patience

    def update(self, rate: float) -> None:
        """One update of the weights at this learning rate, from the next batches."""
        settings = self.settings
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("part", 1.0)
        batches = [next(self.batches) for _ in range(settings.accumulate)]
        tokens = max(1, sum(batch.all_tokens for batch in batches))  # there may be nothing to predict
        for batch in batches:
            with self.spread.accumulating(last=batch is batches[-1]):
                with autocast(settings):
                    logits = self.shape.logits(self.spread.module, batch)
                loss = summed_loss(logits, batch.targets, settings.label_smoothing) / tokens
                (loss * self.world.size).backward()  # the ranks' gradients are averaged, and should be added
            self.loss_sum += loss.detach()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_count += 1
        if self.average is not None and settings.ema:
            # The early average forgets faster, or the random start would stay in it for 1 / (1 - ema) updates.
            update_average(self.average, self.spread, min(settings.ema, (1 + self.step) / (10 + self.step)))

    def _log_losses(self) -> None:
        self.loss = self._total_loss() / max(self.loss_count, 1)
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

    def _total_loss(self) -> float:
        """Of all ranks, since the last line of the log."""
        total = sum(self.world.gathered(float(self.loss_sum)))
        if not abs(total) < float("inf"):
            raise ValueError(f"the loss is {total} at update {self.step}: lower --lr ({self.settings.lr}) or --clip")
        return total

    def _evaluate(self, display: Display) -> None:
        total = self._total_loss()
        loss = total / self.loss_count if self.loss_count else self.loss
        with self.spread.scored(self.average) as scored:
            scores = self.world.from_main({} if scored is None else self._scores(scored))
            self.unimproved += 1
            if not self.best or self.better(scores, self.best):
                self.best, self.unimproved = scores, 0
                if scored is not None:
                    about = {"step": self.step, "seconds": round(self.spent, 1), "dev": scores}
                    self.save_best(self.out / BEST, scored, {**about, "settings": self.settings.to_dict()})
        self.log.write(kind="dev", step=self.step, seconds=round(self.spent, 3), **scores)
        display.score(self.step, self.spent, loss, scores)

    def _scores(self, model: nn.Module) -> Scores:
        model.eval()
        with torch.no_grad(), autocast(self.settings):
            return self.score(model)

    def _save(self) -> None:
        total = self._total_loss()  # a state that cannot go on must not replace one that can
        first, *others = self.world.gathered(random_state())
        state = {
            "settings": self.settings.to_dict(),
            "random": first,
            "random_of_others": others,
            "position": self.batches.position(),
            "step": self.step,
            "spent": self.spent,
            "evaluated": self.evaluated,
            "best": self.best,
            "unimproved": self.unimproved,
            "losses": (total, self.loss_count, self.loss),
            "log_position": self.log.position(),
        }
        self.spread.save(self.out, state, self.optimizer, self.average)

    def _restore(self, state: dict[str, Any]) -> None:
        self.spread.restore(self.out, state, self.optimizer, self.average)
        generators = [state["random"], *state.get("random_of_others", ())]
        if self.world.rank < len(generators):  # with more ranks than before, the others' begin anew
            restore_random(generators[self.world.rank])
        self.batches.restore(state["position"])
        self.step, self.spent, self.evaluated = state["step"], state["spent"], state["evaluated"]
        self.best, self.unimproved = dict(state["best"]), state.get("unimproved", 0)
        total, self.loss_count, self.loss = state["losses"]
        self.loss_sum.fill_(total if self.world.main else 0.0)


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


def autocast(settings: Settings) -> Any:
    """Mixed precision where the settings ask for less than float32; weights stay in float32."""
    if settings.dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(settings.device).type, dtype=DTYPES[settings.dtype])


@torch.no_grad()
def update_average(average: dict[str, Tensor], spread: Alone, decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights; what is not floating point is copied."""
    old = [spread.local(value) for value in average.values()]
    new = [spread.local(value) for value in spread.model.state_dict().values()]
    floating = [index for index, value in enumerate(old) if value.is_floating_point()]
    torch._foreach_lerp_([old[index] for index in floating], [new[index] for index in floating], 1 - decay)
    for index in set(range(len(old))) - set(floating):
        old[index].copy_(new[index])
