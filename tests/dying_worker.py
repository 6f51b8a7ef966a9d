"""`undivided train digits` on small images, as one of torchrun's processes; rank 1 is killed once, in the middle."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import pytest

import task_files
from undivided.cli import main
from undivided.environment import torchrun_restarts
from undivided.training.trainer import Trainer

KILLED_AT = 8


def write_digits(folder: Path, patch: pytest.MonkeyPatch) -> None:
    task_files.write(folder, "digits", {"digits.csv": task_files.images(random.Random(3), 60, 8, 16)}, patch)
    patch.setenv("UNDIVIDED_DATA", str(folder))


if __name__ == "__main__":
    update = Trainer.update

    def dying(self: Trainer, rate: float) -> None:
        if self.world.rank == 1 and self.step == KILLED_AT and torchrun_restarts() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, rate)

    Trainer.update = dying  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        write_digits(Path(place), patched)
        code = main(sys.argv[1:])
    sys.exit(code)
