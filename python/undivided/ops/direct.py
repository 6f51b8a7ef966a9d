"""Whether a call may go to its kernel directly, as `undivided.cpu.direct` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import rules
from ..dispatch import load
from ..invariance import invariant
from ..reference import RelativeBias
from .attention_checks import check_relative_bias
from .checks import FLOATS, is_plain

DIRECT = "undivided.cpu.direct"
# Torch says where its tensors lie from 2.10 on.
POSSIBLE = rules.EXTENSION_MISSING is None and hasattr(Tensor, "__dlpack_c_exchange_api__")


def plain_call(backend: str, x: Any) -> bool:
    """x is a plain dense tensor on a CPU, and there is nothing around the call that an op must heed: autocast, tracing,
    transforms, modes, tangents, batch_invariant."""
    return (
        POSSIBLE
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()  # the imaginary part of a conjugate: its stride is 2, which is none where its size is 1
        and backend in ("auto", "cpu")
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
        and not invariant()
    )


def without_python(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """function.apply, past what it does in Python for transforms of torch.func: for plain calls, which have none."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc, no-any-return]


def any_requires_grad(*values: Any) -> bool:
    for value in values:  # a third of the time of any() with a generator
        if isinstance(value, Tensor) and value.requires_grad:
            return True
    return False


def may_go_directly(backend: str, x: Any, *others: Any) -> bool:
    """A plain call of which no gradient is wanted."""
    return plain_call(backend, x) and not (torch.is_grad_enabled() and any_requires_grad(x, *others))


def relative_words(bias: Any) -> tuple[Tensor, Tensor] | tuple[None, None] | None:
    """(table, its rows by distance) of a relative bias, nothing of no bias; None where the op must look at it."""
    if bias is None:
        return None, None
    if type(bias) is not RelativeBias or type(bias.max_distance) is not int or type(bias.bidirectional) is not bool:
        return None
    table = bias.table
    if not is_plain(table) or table.dtype not in FLOATS or table.dim() != 2:
        return None
    buckets = _buckets(table.shape[0], bias.max_distance, bias.bidirectional)
    return None if buckets is None else (table.float(), buckets)


@lru_cache(maxsize=64)
def _buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor | None:
    """None where the numbers are not allowed."""
    try:
        table = torch.empty(num_buckets, 1, device="cpu")
        check_relative_bias(RelativeBias(table, max_distance, bidirectional), 1, table)
    except ValueError:
        return None
    span = max(max_distance, num_buckets)
    return load("undivided.cpu.attention_call").buckets_by_distance(span, num_buckets, max_distance, bidirectional)
