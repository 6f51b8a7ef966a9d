"""Batch invariance: a row of a batch has the same bits whatever it is computed with.

Two things make the bits of a row depend on its company (He 2025, "Defeating nondeterminism in LLM inference"): products
that sum in another order when there are other numbers of rows, and attention that does when there are few queries. Both
exist because they are faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ON = ContextVar("undivided.batch_invariant", default=False)


@contextmanager
def batch_invariant(enabled: bool = True) -> Iterator[None]:
    """Within it our CPU kernels' forward gives each row the same bits alone, in any batch, and with padding behind it;
    and each token the same whether a sequence is decoded step by step from caches or in one pass.

    It holds for attention, attention_packed, attention_decode, the norms, the feed-forward network and the layers and
    models of `undivided.nn` and `undivided.transformer`, in float32, bfloat16 and float16; not for torch's own layers,
    under autocast or torch.compile, nor for gradients of weights, which are sums over rows. The number of threads
    changes no result, within it or not. Measured on Zen 4: a full pass takes as long as without it, generation 1.1 to
    1.3 times as long, a call of attention_decode with one query up to 2.7 times.

    Also a decorator. It follows the current thread or task, as torch.no_grad does.

        with undivided.batch_invariant():
            logits = model(src, tgt)
    """
    token = _ON.set(bool(enabled))
    try:
        yield
    finally:
        _ON.reset(token)


def invariant() -> bool:
    """Whether the caller is within `batch_invariant`."""
    return _ON.get()
