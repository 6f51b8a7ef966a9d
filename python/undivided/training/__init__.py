"""The trainer: batches of like length, a schedule tied to updates or minutes, checkpoints exact to resume."""

from .models import load_model
from .run import evaluate, predict, train

__all__ = ["evaluate", "load_model", "predict", "train"]
