"""Which backends a test covers: `auto` and every row of an op's table that this machine can run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undivided.dispatch import Backend, BackendRefused
from undivided.rules import EXTENSION_MISSING, TRITON_MISSING

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOW = (torch.bfloat16, torch.float16)


def backends(table: tuple[Backend, ...]) -> list[str]:
    return ["auto", *(row.name for row in table)]


def may_refuse() -> set[str]:
    """torch's kernel and the CUDA ones lack words; the others refuse only where this machine lacks what they need."""
    absent = {"sdpa", "cuda"}
    if EXTENSION_MISSING is not None or DEVICE.type != "cpu":
        absent.add("cpu")
    if TRITON_MISSING is not None:
        absent.add("triton")
    return absent


def run(op: Any, *values: Any, backend: str, **words: Any) -> Any:
    """The op, or a skipped test where a backend that may refuses the call."""
    try:
        return op(*values, backend=backend, **words)
    except BackendRefused as refusal:
        if backend not in may_refuse():
            raise
        pytest.skip(str(refusal).splitlines()[0])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(DEVICE, dtype)


def qkv(
    batch=2, seqlen_q=19, seqlen_k=19, nheads=4, nheads_kv=2, head_dim=16, dtype=torch.float32
) -> list[torch.Tensor]:
    """Leaves that require gradients."""
    sizes = (seqlen_q, nheads), (seqlen_k, nheads_kv), (seqlen_k, nheads_kv)
    made = [random(batch, *size, head_dim, seed=n, dtype=dtype) for n, size in enumerate(sizes)]
    return [t.requires_grad_() for t in made]


def same(a: Any, b: Any) -> bool:
    """To the bit, NaN included."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def same_numbers(backend: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """The same from other strides: to the bit for a kernel on a CPU.

    The reference may sum in an order that torch chooses by the strides. On a GPU so may Triton: it compiles anew for
    strides that are 1 or multiples of 16, spreads a tile over its threads by how many elements each loads at once, and
    sums a row as it lies there.
    """
    if backend == "reference" or DEVICE.type == "cuda":
        torch.testing.assert_close(got, expected)
    else:
        assert torch.equal(got, expected)
