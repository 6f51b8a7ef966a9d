"""How far a training is, and its learning rate there."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """When a training ends: after `steps` updates, or after `minutes` of wall-clock time. Exactly one is given.

    Raises:
        ValueError: both, neither, or one that is not positive and finite.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = f"given steps={self.steps}, minutes={self.minutes}"
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"one of steps and minutes is needed; {given}")
        if not 0 < (self.steps if self.steps is not None else self.minutes or 0) < math.inf:
            raise ValueError(f"the budget must be positive and finite; {given}")

    def fraction(self, step: int, seconds: float) -> float:
        """The spent part of the budget, 0 to 1, after `step` updates and `seconds` of training."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.minutes is not None
        return min(seconds / (60.0 * self.minutes), 1.0)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then a cosine to `floor * peak` (Loshchilov, Hutter 2017), over parts of a budget.

    Raises:
        ValueError: `peak` is not positive and finite, or `warmup` or `floor` is outside [0, 1).
    """

    peak: float
    warmup: float = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.peak < math.inf:
            raise ValueError(f"lr={self.peak} must be positive and finite")
        for name in ("warmup", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")

    def rate(self, fraction: float) -> float:
        """The learning rate once `fraction` (0 to 1) of the budget is spent."""
        if fraction < self.warmup:
            # Never 0: under a budget of minutes the first update would otherwise do nothing.
            return self.peak * max(fraction / self.warmup, 0.01)
        return self.peak * self.after_warmup(fraction)

    def after_warmup(self, fraction: float) -> float:
        """The part of the peak that is left."""
        along = (fraction - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * along))


class InverseSquareRoot(Schedule):
    """Linear warm-up to `peak`, then `peak * sqrt(warmup / fraction)` (Vaswani et al. 2017), never below the floor.

    Raises:
        ValueError: as `Schedule`; and for a `warmup` of 0, from which nothing can fall.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup == 0:
            raise ValueError(f"warmup={self.warmup} must be above 0 for a rate that falls with the inverse square root")

    def after_warmup(self, fraction: float) -> float:
        return max(self.floor, math.sqrt(self.warmup / fraction))


SCHEDULES = {"cosine": Schedule, "inverse-sqrt": InverseSquareRoot}
