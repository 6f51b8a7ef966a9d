"""Which backend a call would take, and why."""

from __future__ import annotations

from ..dispatch import AttentionCall, Call, DecodeCall, FeedForwardCall, RotaryCall, first_willing, report_text
from .attention_decode_table import ATTENTION_DECODE
from .attention_table import ATTENTION
from .feed_forward_table import FEED_FORWARD
from .norm_table import LAYER_NORM, RMS_NORM
from .rotary_table import ROTARY


def explain(call: Call, op: str = "attention", backend: str = "auto") -> str:
    """The table of backends for a call, as text that ends with the choice.

    Args:
        call: an `AttentionCall`, `DecodeCall`, `NormCall`, `FeedForwardCall` or `RotaryCall` of `undivided.dispatch`.
        op: for a NormCall: layer_norm or rms_norm; otherwise ignored.
        backend: as the ops take it.

    Example:
        >>> from undivided.dispatch import AttentionCall
        >>> call = AttentionCall("cpu", "float64", 2, 8, 8, 4, 4, 64, 64)
        >>> print(undivided.explain(call).splitlines()[-1])
        auto takes: sdpa
    """
    if isinstance(call, AttentionCall):
        table = ATTENTION
    elif isinstance(call, DecodeCall):
        table = ATTENTION_DECODE
    elif isinstance(call, FeedForwardCall):
        table = FEED_FORWARD
    elif isinstance(call, RotaryCall):
        table = ROTARY
    elif op in ("layer_norm", "rms_norm"):
        table = LAYER_NORM if op == "layer_norm" else RMS_NORM
    else:
        raise ValueError(f"op={op!r} is unknown for a NormCall; allowed: layer_norm, rms_norm")
    row = first_willing(table, call, backend)
    return f"{call}\n{report_text(table, call)}\n{backend} takes: {'none' if row is None else row.name}"
