"""The model's ops, replaced for a while: the same layers and weights on plain torch, or on one backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
def replaced(functions: Mapping[str, Callable[..., Any]], pads: bool) -> Iterator[None]:
    """undivided.ops with these functions. The layers look their ops up there at each call.

    pads: models carry the padding of a padded batch along.
    """
    from undivided import ops
    from undivided.transformer import keep_padding

    before = {name: getattr(ops, name) for name in functions}
    for name, function in functions.items():
        setattr(ops, name, function)
    try:
        with keep_padding() if pads else nullcontext():
            yield
    finally:
        for name, function in before.items():
            setattr(ops, name, function)


def on_backend(backend: str, packed: bool = False, pads: bool = False) -> Implementation:
    """Every op with `backend`; packed, pads: how the batch goes in, and through the model."""
    import undivided

    functions = {name: partial(getattr(undivided, name), backend=backend) for name in NAMES}
    return Implementation(lambda: replaced(functions, pads or backend == "reference"), packed=packed)


def on_torch(compiles: bool = False) -> Implementation:
    """scaled_dot_product_attention, F.layer_norm, F.rms_norm and F.linear, as a user of plain torch writes them."""
    functions: dict[str, Callable[..., Any]] = dict(
        attention=attention,
        attention_decode=attention_decode,
        layer_norm=layer_norm,
        rms_norm=rms_norm,
        feed_forward=feed_forward,
        rotary=turned,
        linear=F.linear,
    )

    def opened() -> AbstractContextManager[None]:
        shared = {} if compiles else {"attention": partial(attention, dense={})}
        return replaced(functions | shared, pads=True)

    return Implementation(opened, compiles)


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
    dense: dict[Any, Any] | None = None,
) -> Tensor:
    """(batch, seqlen, nheads, head_dim). One query sees all of its cache; a longer causal call must be square.

    dense: what layers share, as in T5 of transformers: the relative bias as a matrix, with what is masked.
    """
    causal = causal and q.shape[1] > 1
    assert not causal or q.shape[1] == k.shape[1]
    if rotary is not None:  # of self-attention
        now = [table[: q.shape[1]] for table in rotary]
        q, k = turned(q, *now), turned(k, *now)
    mask = None
    if key_lengths is not None:
        mask = (torch.arange(k.shape[1], device=k.device) < key_lengths[:, None])[:, None, None, :]
    if bias is not None:
        mask, causal = shared_bias(bias, q, k, mask, key_lengths, causal, {} if dense is None else dense), False
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    words: dict[str, Any] = dict(attn_mask=mask, is_causal=causal, dropout_p=dropout_p, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, **words).transpose(1, 2)


def shared_bias(
    bias: Any,
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    key_lengths: Tensor | None,
    causal: bool,
    dense: dict[Any, Any],
) -> Tensor:
    """(1 or batch, nheads, seqlen_q, seqlen_k), additive, in q's dtype; made once for the layers that share it."""
    from undivided import RelativeBias

    if not isinstance(bias, RelativeBias):
        raise NotImplementedError("the plain torch model has no other bias than the relative one")
    key = id(bias.table), id(key_lengths), q.shape[1], k.shape[1], causal, q.dtype
    if key not in dense:
        added = relative_matrix(bias, q.shape[1], k.shape[1]).to(q.dtype)[None]
        if causal:
            added = added.masked_fill(torch.ones_like(added[0, 0], dtype=torch.bool).triu(1), -torch.inf)
        if mask is not None:
            added = added.masked_fill(~mask, -torch.inf)
        dense[key] = added, bias.table, key_lengths  # kept, so that their ids stay theirs
    found: Tensor = dense[key][0]
    return found


def relative_matrix(bias: Any, seqlen_q: int, seqlen_k: int) -> Tensor:
    """(nheads, seqlen_q, seqlen_k), of a number a distance: the gradient of `table[buckets]` is far slower."""
    from undivided.reference.bias import relative_buckets

    distances = torch.arange(1 - seqlen_k, seqlen_q, device=bias.table.device)
    buckets = relative_buckets(distances, bias.table.shape[0], bias.max_distance, bias.bidirectional)
    picked = F.one_hot(buckets, bias.table.shape[0]).to(bias.table.dtype)  # (distances, num_buckets)
    with torch.autocast(picked.device.type, enabled=False):
        return (picked @ bias.table).t().unfold(1, seqlen_k, 1).flip(1)


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
