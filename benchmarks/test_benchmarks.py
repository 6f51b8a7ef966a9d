"""The quick cases under pytest-benchmark: `pytest benchmarks --benchmark-only` (and its --benchmark-compare,
--benchmark-histogram). The same gate comes first: a provider that is wrong fails instead of being timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .ceilings import Ceilings
from .op import Absent, Op, Provider
from .runner import Job, Settings, admit
from .suite import OPS, default_backends, default_device

DEVICE = default_device()
SETTINGS = Settings(quick=True, compiles=False)


def clock() -> float:
    """Seconds, after everything that was launched is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def jobs() -> Iterator[Any]:
    for op in OPS.values():
        providers = [one for one in op.providers(DEVICE, default_backends(DEVICE, True)) if not isinstance(one, Absent)]
        for case in op.cases(True, DEVICE):
            for mode in op.modes(case):
                for provider in providers:
                    if not (provider.compiles or provider.slow):
                        name = f"{op.name}, {case.name}, {mode}"
                        yield pytest.param(op, case, mode, provider, id=f"{name}, {provider.name}".replace(" ", "-"))


@pytest.mark.benchmark(timer=clock, min_rounds=5, max_time=0.1, warmup=False)
@pytest.mark.parametrize(("op", "case", "mode", "provider"), list(jobs()))
def test_benchmark(benchmark: Any, op: Op, case: Any, mode: str, provider: Provider) -> None:
    job = Job(op, case, mode, [provider], Ceilings(DEVICE, "", {}, {}), SETTINGS)
    row = job.row(provider)
    work = admit(job, provider, row)
    # Peers lack words, and so do our CUDA kernels; the others have all.
    if work is None and row.status.startswith("cannot") and provider.backend in (None, "cuda"):
        pytest.skip(row.status)
    assert work is not None, f"{row.status}: error {row.error}, budget {row.budget}"
    benchmark.group = f"{op.name}, {case.name}, {mode}"
    benchmark.extra_info.update(error=row.error, budget=row.budget, version=provider.version)
    benchmark(work)
