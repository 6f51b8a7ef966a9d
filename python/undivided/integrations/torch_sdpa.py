"""torch's scaled_dot_product_attention, nn.MultiheadAttention and nn.Transformer* on this package's kernels.

While it is active, the name `torch.nn.functional.scaled_dot_product_attention` stands for the function of that name
below; torch's own modules look the name up at every call, and torch.compile guards on what it finds. (An override of
aten::scaled_dot_product_attention in the dispatcher would be seen by neither its guards nor its caches: a graph that
was made without it would be used with it, and the reverse.) Code that took the function out of torch.nn.functional
earlier keeps torch's own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import mha
from torch.compiler import config
from torch.jit._builtins import _register_builtin
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..dispatch import AttentionCall, Backend, first_willing, report
from ..ops.attention import attention, describe
from ..ops.attention_direct import directly
from ..ops.attention_plain import Numbers, Tensors
from ..ops.attention_table import ATTENTION
from ..rules import OF_THE_MACHINE, on_cpu
from ..torch_kernels.attention import TORCH_SDPA
from .torch_sdpa_call import NESTED, is_bottom_right, translate

KERNELS = tuple(row for row in ATTENTION if row.name not in ("sdpa", "reference"))
BY_NAME = tuple(row for row in ATTENTION if row.name != "sdpa")
ELSEWHERE = (*OF_THE_MACHINE, on_cpu)


@dataclass
class SDPAReport:
    """What has become of the calls of scaled_dot_product_attention since it was made ours.

    calls: by backend, and "torch" for torch's own kernels. reasons: why calls went to torch, with their number. A call
    that torch.compile traces counts once a trace, not once a run of the graph.
    """

    calls: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"  {name:<10} {count:>8}" for name, count in self.calls.most_common()]
        lines += [f"  to torch   {count:>8}  {reason}" for reason, count in self.reasons.most_common()]
        return "\n".join(["scaled_dot_product_attention: calls by backend", *(lines or ["  none"])])


class _Activation:
    """One `with` block, or the installation."""

    def __init__(self, backend: str) -> None:
        self.backend = backend


_lock = threading.RLock()
_active: list[_Activation] = []  # the last one decides; an installation is the first
_installed: _Activation | None = None
_report = SDPAReport()
_backend: str | None = None  # of the last activation; None while there is none
_torch: Any = TORCH_SDPA  # what torch.nn.functional held before
_fastpath: Any = True  # and torch.backends.mha
_cache_tag = ""  # and torch.compiler.config


@contextmanager
def sdpa(backend: str = "auto") -> Iterator[SDPAReport]:
    """Routes torch's attention to this package within a `with` block, and gives the report of its calls.

    F.scaled_dot_product_attention, and with it nn.MultiheadAttention (called with need_weights=False) and
    nn.Transformer*, runs on our kernels: forward and backward, in eager and under torch.compile. Semantics are
    torch's: causal is aligned top-left, a bool mask is True where visible, a float mask is added and gets its
    gradient, dropout draws from torch's generator, a row that sees nothing gives 0. Arguments are read as they are: no
    copy is made of them, and a mask that broadcasts is not expanded. What our kernels refuse goes to torch's own
    function and is in the report, with the reason. nn.MultiheadAttention's and nn.TransformerEncoderLayer's fused
    inference path, which would bypass attention, is off meanwhile.

    It holds for the process, not for a thread, as torch.nn.attention.sdpa_kernel does. Blocks nest, the inner one's
    backend holds. Enter the block outside a compiled function, and run backward inside it where checkpointing computes
    the forward anew. The kernels have first derivatives only, as torch's fused ones. Code that torch.jit.script
    compiles, or compiled, keeps torch's function.

    Args:
        backend: "auto", or the one to use where it can run the call: a name of the backends of `undivided.attention`
            but sdpa, which is torch's own function.

    Raises:
        ValueError: the backend is unknown.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True)
        >>> with undivided.sdpa() as report:
        ...     out = encoder(torch.randn(2, 10, 64))
        >>> report.calls
        Counter({'cpu': 1})
    """
    activation = _Activation(_known(backend))
    with _lock:
        _active.append(activation)
        _refresh()
    try:
        yield _report
    finally:
        with _lock:
            _active.remove(activation)
            _refresh()


def install_sdpa(backend: str = "auto") -> SDPAReport:
    """As `sdpa`, for the rest of the process or until `uninstall_sdpa`; again with another backend changes it.

    Raises:
        ValueError: the backend is unknown.
    """
    global _installed
    _known(backend)
    with _lock:
        if _installed is None:
            _installed = _Activation(backend)
            _active.insert(0, _installed)
        _installed.backend = backend
        _refresh()
        return _report


def uninstall_sdpa() -> None:
    """Undoes `install_sdpa`; nothing happens where it is not installed. `with` blocks that are open stay active."""
    global _installed
    with _lock:
        if _installed is not None:
            _active.remove(_installed)
            _installed = None
            _refresh()


def sdpa_report() -> SDPAReport:
    """The report of the present activation, or of the last one where none is. A new one starts an empty report."""
    return _report


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, with its contract, on the kernels of this package.

    What they refuse, and every call while neither `sdpa` nor `install_sdpa` is active, goes to torch's own function.
    """
    words: dict[str, Any] = dict(
        attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if _backend is None:
        return _torch(query, key, value, **words)
    if has_torch_function_variadic(query, key, value, attn_mask):
        plain = not has_torch_function_variadic(query, key, value)
        if plain and not is_causal and is_bottom_right(attn_mask, query, key):
            return _attend(query, key, value, **{**words, "attn_mask": None, "is_causal": True}, bottom_right=True)
        if query.is_nested:  # knows torch's function by its identity
            _count("torch", NESTED)
            return _torch(query, key, value, **words)
        overriding = (query, key, value, attn_mask)
        return handle_torch_function(scaled_dot_product_attention, overriding, query, key, value, **words)
    return _attend(query, key, value, **words)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, bottom_right: bool = False, **words: Any) -> Tensor:
    """A call without overrides; bottom_right moves is_causal to where `undivided.attention` has it."""
    dropout_p, causal = words["dropout_p"], words["is_causal"]
    found = _directly(query, key, value, bottom_right, **words)
    if found is not None:
        _count("cpu")
        return found
    call = translate(query, key, value, **words)
    if isinstance(call, str):
        return _by_torch(call, query, key, value, bottom_right, words)
    offset = 0 if causal and not bottom_right else None
    numbers = Numbers(scale=1.0, right=0 if causal else None, offset=offset, dropout_p=dropout_p)
    plain = describe(Tensors(call.q, call.k, call.v, call.bias, mask=call.mask), numbers, return_lse=False)
    backend = _backend or "auto"
    rows = KERNELS if backend == "auto" else BY_NAME
    row = first_willing(rows, plain, backend)
    if row is None:
        return _by_torch(_objections(rows, plain, backend), query, key, value, bottom_right, words)
    _count(row.name)
    out = attention(
        call.q,
        call.k,
        call.v,
        causal=causal,
        mask=call.mask,
        bias=call.bias,
        scale=words["scale"],
        dropout_p=dropout_p,
        query_offset=offset,
        backend=row.name,
    )
    assert isinstance(out, Tensor)  # a pair only where the lse is asked for
    return call.result(out)


def _directly(
    query: Any,
    key: Any,
    value: Any,
    bottom_right: bool,
    *,
    attn_mask: Any,
    dropout_p: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
) -> Tensor | None:
    """The plainest calls, past all that follows; None for any other."""
    if attn_mask is not None or type(dropout_p) is not float or dropout_p != 0.0:
        return None
    if isinstance(query, Tensor) and not query.is_cpu:
        return None
    if not all(isinstance(x, Tensor) and x.dim() == 4 and not x.is_nested for x in (query, key, value)):
        return None
    if type(enable_gqa) is not bool or (query.shape[1] != key.shape[1] and not enable_gqa):
        return None
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    offset = 0 if is_causal and not bottom_right else None
    out, _ = directly(_backend or "auto", q, k, v, query_offset=offset, causal=is_causal, scale=scale)
    return None if out is None else out.transpose(1, 2)


def _objections(rows: tuple[Backend, ...], call: AttentionCall, backend: str) -> str:
    """Why none of the backends that were asked runs the call; those of other machines speak if there is no other."""
    asked, here = [], []
    for row in rows:
        if backend in ("auto", row.name):
            asked.append(row)
            if not _belongs_elsewhere(row, call):
                here.append(row)
    return "; ".join([f"{name}: {text}" for name, text in report(tuple(here or asked), call)])


def _belongs_elsewhere(row: Backend, call: AttentionCall) -> bool:
    for rule in row.rules:
        if rule in ELSEWHERE and rule(call) is not None:
            return True
    return False


def _by_torch(
    reason: str, query: Tensor, key: Tensor, value: Tensor, bottom_right: bool, words: dict[str, Any]
) -> Tensor:
    _count("torch", reason)
    if bottom_right:
        seqlen_q, seqlen_k = query.shape[-2], key.shape[-2]
        mask = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=query.device).tril(seqlen_k - seqlen_q)
        words = {**words, "attn_mask": mask, "is_causal": False}
    return _torch(query, key, value, **words)


def _count(backend: str, reason: str | None = None) -> bool:
    with _lock:
        _report.calls[backend] += 1
        if reason is not None:
            _report.reasons[reason] += 1
    return True


# torch.compile runs it while it traces and keeps the result, instead of tracing it. This is all that the decorator
# torch.compiler.assume_constant_result does, but for loading the compiler at once.
_count._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _known(backend: str) -> str:
    allowed = ("auto", *(row.name for row in BY_NAME))
    if backend not in allowed:
        raise ValueError(f"backend={backend!r} is unknown here; allowed: {', '.join(allowed)}")
    return backend


def _refresh() -> None:
    """Brings torch in line with `_active`; the lock is held."""
    global _backend
    if _active and _backend is None:
        _take_over()
    elif not _active and _backend is not None:
        _give_back()
    _backend = _active[-1].backend if _active else None
    # torch.compile takes F.multi_head_attention_forward whole, as one node of its graph, so that its caches on disk
    # could not tell whether our ops are in there.
    config.cache_key_tag = _cache_tag if _backend is None else f"{_cache_tag}undivided.sdpa={_backend}"


def _take_over() -> None:
    global _report, _torch, _fastpath, _cache_tag
    _report = SDPAReport()
    _fastpath, _cache_tag = mha.get_fastpath_enabled(), config.cache_key_tag
    # Off, as False is; but torch.compile guards on it, so a graph made where it was False is not used here.
    mha.set_fastpath_enabled(0)  # type: ignore[arg-type]
    if F.scaled_dot_product_attention is not scaled_dot_product_attention:
        _torch = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore[assignment]
    # torch.jit.script cannot compile our function: what is scripted now calls torch's.
    _register_builtin(scaled_dot_product_attention, "aten::scaled_dot_product_attention")


def _give_back() -> None:
    mha.set_fastpath_enabled(_fastpath)
    # What somebody else has put there since stays: it may hold our function, which is torch's own from now on.
    if F.scaled_dot_product_attention is scaled_dot_product_attention:
        F.scaled_dot_product_attention = _torch
