"""What each backend's kernels have, read off the tables that `auto` chooses by."""

from __future__ import annotations

from typing import Any

from ..dispatch import AttentionCall, Backend, Call, DecodeCall, FeedForwardCall, NormCall, RotaryCall
from ..rules import OF_THE_MACHINE
from .attention_decode_table import ATTENTION_DECODE
from .attention_table import ATTENTION
from .feed_forward_table import FEED_FORWARD
from .norm_table import LAYER_NORM, RMS_NORM
from .rotary_table import ROTARY

_ATTENTION = AttentionCall("", "bfloat16", 2, 128, 128, 8, 8, 128, 128, needs_grad=True)
_DECODE = DecodeCall("", "bfloat16", 2, 1, 1024, 8, 8, 64, 64)
_NORM = NormCall("", "bfloat16", 256, 512, needs_grad=True)
_FEED_FORWARD = FeedForwardCall("", "bfloat16", 256, 512, 2048, needs_grad=True)
_ROTARY = RotaryCall("", "bfloat16", 2, 128, 8, 64, needs_grad=True)

# (what a reader looks for, the fields of a call that has it)
ATTENTION_FEATURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forward and backward, float16 and bfloat16", {}),
    ("float32", {"dtype": "float32"}),
    ("float64", {"dtype": "float64"}),
    ("head_dim 8", {"head_dim": 8, "head_dim_v": 8}),
    ("head_dim 256", {"head_dim": 256, "head_dim_v": 256}),
    ("values narrower than keys", {"head_dim_v": 32}),
    ("grouped-query heads", {"nheads_kv": 2}),
    ("causal, square", {"causal": True, "window": (None, 0)}),
    ("causal, seqlen_q and seqlen_k differ", {"causal": True, "window": (None, 0), "seqlen_k": 300}),
    ("window", {"window": (64, 64)}),
    ("query_offset", {"query_offset": "tensor"}),
    ("key_lengths", {"key_lengths": True}),
    ("key_lengths and causal", {"key_lengths": True, "causal": True, "window": (None, 0)}),
    ("query_lengths", {"query_lengths": True}),
    ("packed batches", {"packed": True}),
    ("rotary positions", {"rotary": True}),
    ("mask", {"mask": True}),
    ("dense bias with gradient", {"bias": "dense", "bias_needs_grad": True}),
    ("T5's relative bias with gradient", {"bias": "relative", "bias_needs_grad": True}),
    ("ALiBi", {"bias": "alibi"}),
    ("softcap", {"softcap": True}),
    ("attention sinks with gradient", {"sinks": True}),
    ("dropout from a seed", {"dropout": True}),
    ("lse", {"return_lse": True}),
)
DECODE_FEATURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("contiguous cache, float16 and bfloat16", {}),
    ("float32", {"dtype": "float32"}),
    ("paged cache", {"paged": True}),
    ("append in the same call", {"appends": True}),
    ("several queries a row", {"seqlen_q": 4}),
    ("grouped-query heads", {"nheads_kv": 2}),
    ("window", {"window": (256, 0)}),
    ("T5's relative bias", {"bias": "relative"}),
    ("ALiBi", {"bias": "alibi"}),
    ("softcap", {"softcap": True}),
    ("attention sinks", {"sinks": True}),
    ("rotary positions", {"rotary": True}),
    ("lse", {"return_lse": True}),
)
NORM_FEATURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forward and backward, float16 and bfloat16", {}),
    ("float32", {"dtype": "float32"}),
    ("residual add in the same pass", {"residual": True}),
)
FEED_FORWARD_FEATURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forward and backward, float16 and bfloat16", {}),
    ("float32", {"dtype": "float32"}),
    ("gated: SwiGLU, GEGLU", {"gated": True, "activation": "silu"}),
)
ROTARY_FEATURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forward and backward, float16 and bfloat16", {}),
    ("float32", {"dtype": "float32"}),
    ("positions by row", {"positions": True}),
    ("gradient of the tables", {"tables_need_grad": True}),
)
OPS = (
    ("attention", ATTENTION, _ATTENTION, ATTENTION_FEATURES),
    ("attention_decode", ATTENTION_DECODE, _DECODE, DECODE_FEATURES),
    ("layer_norm", LAYER_NORM, _NORM, NORM_FEATURES),
    ("rms_norm", RMS_NORM, _NORM, NORM_FEATURES),
    ("feed_forward", FEED_FORWARD, _FEED_FORWARD, FEED_FORWARD_FEATURES),
    ("rotary", ROTARY, _ROTARY, ROTARY_FEATURES),
)
COLUMNS = ("cuda", "triton", "cpu", "sdpa", "reference")


def has(backend: Backend, call: Call) -> bool:
    """Whether the backend's kernels run the call, on a machine that has what they need."""
    return not any(rule(call) for rule in backend.rules if rule not in OF_THE_MACHINE)


def cell(row: Backend | None, call: Call) -> str:
    """Whether a row of a table runs the call: with gradients, or else without."""
    without: dict[str, Any] = {name: False for name in call._fields if name.endswith("needs_grad")}
    forward = call._replace(**without)
    for asked, kind in ((call, ""), (forward, "forward ")):
        if row is not None:
            asked = asked._replace(device="cpu" if row.name == "cpu" else "cuda")
            if has(row, asked):
                return kind + ("by name" if row.auto_objections(asked) else "yes")
    return "-"


def features_table() -> str:
    """A Markdown table: a line a feature, a column a backend. "by name" is a kernel that `auto` passes over there,
    "forward" one without gradients."""
    names = [name for name in COLUMNS if any(name == row.name for _, table, _, _ in OPS for row in table)]
    lines = [f"| op | feature | {' | '.join(names)} |", "|---|---|" + ":-:|" * len(names)]
    for op, table, call, features in OPS:
        rows = {row.name: row for row in table}
        for feature, fields in features:
            asked = call._replace(**fields)
            cells = [cell(rows.get(name), asked) for name in names]
            lines.append(f"| `{op}` | {feature} | {' | '.join(cells)} |")
    return "\n".join(lines)
