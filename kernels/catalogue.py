"""The specialisations that calls take, by name: what is compiled ahead of time to see what each needs.

Attention, decoding and rotary at head_dim 64 and 128, attention with each of its features, the norms and the
feed-forward network at common widths; bfloat16 (float16 has the same tiles) and, where it has tiles of its own,
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .aot import Resources
from .attention.compiled import FEATURES, compile_attention, compile_combine, compile_delta
from .attention_decode.compiled import compile_decode
from .feed_forward.compiled import KERNELS as FEED_FORWARD_KERNELS
from .feed_forward.compiled import compile_feed_forward
from .norm.compiled import compile_norm
from .rotary.compiled import compile_rotary

# What a kernel needs for a compute capability; or, where a call takes several kernels, by their names.
Compile = Callable[[int], Resources | dict[str, Resources]]
Entries = Iterator[tuple[str, Compile]]

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float32)
# 8192 columns are the widest whole row backward (16384 for RMS norm on 9.0); more go by chunks, as 20000 do forward.
WIDTHS = {"forward": (512, 1024, 4096, 16384, 20000), "backward": (512, 1024, 4096, 8192, 16384)}


def named(*words: object) -> str:
    return " ".join(str(word).removeprefix("torch.") for word in words if word)


def attention() -> Entries:
    for head_dim in HEAD_DIMS:
        for dtype in DTYPES:
            for kernel in ("forward", "dq", "dkdv"):
                for causal in (False, True):
                    name = named(kernel, "head_dim", head_dim, dtype, "causal" if causal else "full")
                    yield name, partial(compile_attention, kernel, head_dim, dtype, causal=causal)
                name = named(kernel, "head_dim", head_dim, dtype, "causal, packed")
                yield name, partial(compile_attention, kernel, head_dim, dtype, causal=True, PACKED=True, ORDERED=True)
            name = named("forward head_dim", head_dim, dtype, "full, keys split")
            yield name, partial(compile_attention, "forward", head_dim, dtype, SPLIT=True)
        yield from attention_features(head_dim)
        name = named("combine head_dim", head_dim, torch.bfloat16)
        yield name, partial(compile_combine, head_dim, torch.bfloat16)
        yield named("delta head_dim", head_dim, torch.bfloat16), partial(compile_delta, head_dim, torch.bfloat16)


def attention_features(head_dim: int) -> Entries:
    """Each by itself: of what may meet there are thousands."""
    for feature, constants in FEATURES.items():
        kernels = ("forward",) if feature in ("sinks", "turned positions") else ("forward", "dq", "dkdv")
        causal = feature != "window"  # which has bounds of its own
        for kernel in (*kernels, "dbias") if feature == "dense bias" else kernels:
            name = named(kernel, "head_dim", head_dim, torch.bfloat16, "causal" if causal else "", "with", feature)
            yield name, partial(compile_attention, kernel, head_dim, torch.bfloat16, causal=causal, **constants)


def attention_decode() -> Entries:
    for head_dim in HEAD_DIMS:
        for dtype in DTYPES:
            for group, seqlen_q in ((1, 1), (8, 1), (8, 4)):  # 16 rows of a tile, half of them used; 32
                for block_size in (0, 16, 128):
                    pages = f"blocks of {block_size}" if block_size else "contiguous"
                    name = named("forward head_dim", head_dim, dtype, "group", group, "queries", seqlen_q, pages)
                    words = dict(seqlen_q=seqlen_q, group=group, block_size=block_size, split=True)
                    yield name, partial(compile_decode, head_dim, dtype, **words)
                name = named("forward head_dim", head_dim, dtype, "group", group, "queries", seqlen_q, "turned")
                words = dict(seqlen_q=seqlen_q, group=group, split=True, rotary=True)
                yield name, partial(compile_decode, head_dim, dtype, **words)


def norm(op: str) -> Entries:
    for weights in (torch.bfloat16, torch.float32):
        for direction, columns in ((name, width) for name in WIDTHS for width in WIDTHS[name]):
            name = named(direction, "columns", columns, "bfloat16, weights", weights)
            centred = op == "layer_norm"
            yield name, partial(compile_norm, direction, columns, torch.bfloat16, weights, centred=centred)


def feed_forward() -> Entries:
    for kernel in FEED_FORWARD_KERNELS:
        for gated in (False, True):
            for activation in ("relu", "gelu", "gelu_tanh", "silu"):
                name = named(kernel, "gated" if gated else "plain", activation, torch.bfloat16)
                yield name, partial(compile_feed_forward, kernel, activation, gated, torch.bfloat16)


def rotary() -> Entries:
    for head_dim in HEAD_DIMS:
        for direction in ("forward", "backward"):
            for positions in (False, True):
                name = named(direction, "head_dim", head_dim, torch.bfloat16, "positions by row" if positions else "")
                inverse = direction == "backward"
                yield name, partial(compile_rotary, head_dim, torch.bfloat16, inverse=inverse, positions=positions)


CATALOGUE: dict[str, Callable[[], Entries]] = {
    "attention": attention,
    "attention_decode": attention_decode,
    "layer_norm": partial(norm, "layer_norm"),
    "rms_norm": partial(norm, "rms_norm"),
    "feed_forward": feed_forward,
    "rotary": rotary,
}


def compiled(compile_for: Compile, name: str, capability: int) -> Iterator[tuple[str, Resources]]:
    """(name, what it needs) of each kernel of one entry."""
    found = compile_for(capability)
    for kernel, resources in (found if isinstance(found, dict) else {"": found}).items():
        yield name if kernel in name else f"{name} ({kernel})", resources
