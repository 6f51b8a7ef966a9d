"""Layer norm of 16 rows, measured for a moment: what the tests of the benchmarks share."""

from __future__ import annotations

from undivided.benchmarks import layer_norm, runner
from undivided.benchmarks.ceilings import Ceilings
from undivided.benchmarks.op import Provider

CEILINGS = Ceilings("cpu", "a test", {2**20: 1e10}, {"float32": 1e11, "bfloat16": 2e11})
SETTINGS = runner.Settings(seconds=0.001, quick=True, compiles=False)
NORM = layer_norm.Case("layer_norm", 16, 32, "float32")


def honest(case, device):
    return layer_norm.eager(case, device)


def measure(op, case, mode, *providers):
    return runner.measure(runner.Job(op, case, mode, providers, CEILINGS, SETTINGS)).rows


def provider(name, make, backend=None):
    return Provider(name, "1", make, backend=backend)
