"""The model's ops, replaced for a while: the same layers and weights on plain torch, or on one backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .op import Absent, Provider

NAMES = ("attention", "attention_decode", "attention_packed", "layer_norm", "rms_norm", "feed_forward", "rotary")


@dataclass(frozen=True)
class Implementation:
    """`open()` is the context in which a model runs on it.

    compiles: the model goes through torch.compile first. packed: the batch goes in without its padding. graph: steps
    of decoding are replayed from a CUDA graph.
    """

    open: Callable[[], AbstractContextManager[None]]
    compiles: bool = False
    packed: bool = False
    graph: bool = False


@contextmanager
def replaced(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """undivided.ops with these functions. The layers look their ops up there at each call."""
    from undivided import ops

    before = {name: getattr(ops, name) for name in functions}
    for name, function in functions.items():
        setattr(ops, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(ops, name, function)


def on_backend(backend: str, packed: bool = False) -> Implementation:
    """Every op with `backend`."""
    import undivided

    functions = {name: partial(getattr(undivided, name), backend=backend) for name in NAMES}
    return Implementation(lambda: replaced(functions), packed=packed)


def on_torch(compiles: bool = False) -> Implementation:
    """scaled_dot_product_attention, F.layer_norm, F.rms_norm and F.linear, as a user of plain torch writes them."""
    functions: dict[str, Callable[..., Any]] = dict(
        attention=attention,
        attention_decode=attention_decode,
        layer_norm=layer_norm,
        rms_norm=rms_norm,
        feed_forward=feed_forward,
        rotary=turned,
    )
    return Implementation(lambda: replaced(functions), compiles)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    bias: Any = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(batch, seqlen, nheads, head_dim). One query sees all of its cache; a longer causal call must be square."""
    if bias is not None:
        raise NotImplementedError("the plain torch model has no relative bias; choose other positions")
    causal = causal and q.shape[1] > 1
    assert not causal or q.shape[1] == k.shape[1]
    if rotary is not None:  # of self-attention
        now = [table[: q.shape[1]] for table in rotary]
        q, k = turned(q, *now), turned(k, *now)
    mask = None
    if key_lengths is not None:
        mask = (torch.arange(k.shape[1], device=k.device) < key_lengths[:, None])[:, None, None, :]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    words: dict[str, Any] = dict(attn_mask=mask, is_causal=causal, dropout_p=dropout_p, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, **words).transpose(1, 2)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    causal: bool = True,
    bias: Any = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A step on caches whose rows are equally long, or cross attention to a memory with lengths of its own."""
    if k is None or v is None:
        return attention(q, k_cache, v_cache, key_lengths=cache_lengths, bias=bias, scale=scale)
    start = int(cache_lengths[0])  # whoever writes this in plain torch keeps it as a number
    end = start + k.shape[1]
    if rotary is not None:
        now = [table[start:end] for table in rotary]
        q, k = turned(q, *now), turned(k, *now)
    k_cache[:, start:end], v_cache[:, start:end] = k, v
    return attention(q, k_cache[:, :end], v_cache[:, :end], causal=causal, bias=bias, scale=scale)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, residual: Tensor | None = None) -> Any:
    x = x if residual is None else x + residual
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, x)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> Any:
    x = x if residual is None else x + residual
    y = F.rms_norm(x, x.shape[-1:], weight, eps)
    return y if residual is None else (y, x)


def feed_forward(
    x: Tensor, w_in: Tensor, b_in: Any, w_out: Tensor, b_out: Any = None, activation: str = "gelu", w_gate: Any = None
) -> Tensor:
    from undivided.testing import honest

    return honest.feed_forward(x, w_in, b_in, w_out, b_out, activation, w_gate)


def turned(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    from undivided.testing import honest

    return honest.rotary(x, cos, sin, positions)


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    """`auto` is what a model runs on: a kernel backend alone does not have every op. `reference` has."""
    import undivided

    asked = dict.fromkeys("reference" if name == "reference" else "auto" for name in backends)
    version = torch.__version__
    return [
        *(
            Provider(f"undivided {name}", undivided.__version__, partial(_make, on_backend(name)), backend=name)
            for name in asked
        ),
        Provider("torch", version, partial(_make, on_torch())),
        Provider("torch.compile", version, partial(_make, on_torch(compiles=True)), compiles=True),
    ]


def _make(implementation: Implementation, case: Any, device: str) -> Any:
    return implementation
