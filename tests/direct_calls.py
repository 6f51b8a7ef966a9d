"""What the tests of direct calls share: a call both ways, and what is compared of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from undivided import RelativeBias
from undivided.ops import direct as permission
from undivided.testing import poison

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = ("attention", "attention_decode", "norm", "linear", "feed_forward", "rotary")
LAUNCHERS = ("attention", "layer_norm", "rms_norm")


def watch(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call that tries from now on, whether it went directly."""
    direct = importlib.import_module("undivided.cpu.direct")
    found: list[bool] = []
    for name in OPS:
        function = getattr(direct, name)

        def watched(*values: Any, function: Callable[..., Any] = function) -> Any:
            result = function(*values)
            found.append(result is not None)
            return result

        monkeypatch.setattr(direct, name, watched)
    return found


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def outcome(function: Callable[..., Any], *values: Any, **words: Any) -> Any:
    """What a call gives, with the gradients that are wanted, or the error that it raises."""
    with poison():
        try:
            found = function(*values, **words)
            found = found if isinstance(found, tuple) else (found,)
            outs = [out for out in found if out.requires_grad]
            leaves = [x for x in (*values, *words.values()) if isinstance(x, Tensor) and x.requires_grad]
            if not outs:
                return found
            grads = torch.autograd.grad(outs, leaves, [out.detach() for out in outs], allow_unused=True)
        except (TypeError, ValueError, RuntimeError) as error:
            return type(error), str(error)
    return *found, *(grad for grad in grads if grad is not None)


def wanting(value: Any) -> Any:
    if isinstance(value, RelativeBias) and isinstance(value.table, Tensor):
        return RelativeBias(wanting(value.table), value.max_distance, value.bidirectional)
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if is_float else value


def alike(one: Any, other: Any) -> bool:
    if isinstance(other[0], type):
        return bool(one == other)
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        and torch.equal(a.isnan(), b.isnan())
        and (a.dtype, a.stride()) == (b.dtype, b.stride())
        for a, b in zip(one, other, strict=True)
    )


def same(function: Callable[..., Any], *values: Any, **words: Any) -> bool:
    """Whether both ways give the same bits and strides, or the same error; with gradients too, where the usual way is
    that of a torch which does not say where its tensors lie, in the launchers as well."""
    found = []
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.MonkeyPatch.context() as patch:
            if gradients:
                values, words = tuple(map(wanting, values)), {name: wanting(value) for name, value in words.items()}
            one = outcome(function, *values, **words)
            patch.setattr(permission, "POSSIBLE", False)
            for launcher in LAUNCHERS:
                patch.setattr(f"undivided.cpu.{launcher}.READS_TENSORS", False)
            found.append(alike(one, outcome(function, *values, **words)))
    return all(found)


WRONG = [None, 3, "x", [1.0], random(2, 3), random(4), random(16, dtype=torch.float64), torch.tensor(1.0)]


def attention_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return random(2, 5, 4, 16, dtype=dtype), *random(2, 2, 7, 2, 16, dtype=dtype, seed=1).unbind(0)
