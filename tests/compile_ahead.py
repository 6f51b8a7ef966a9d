"""Run in a process of its own, without the interpreter: compiles what its arguments name and prints JSON lines.

Arguments: an op of the catalogue and words that an entry's name must hold, or with a minus must not hold; or one of
the functions below.
"""

import json
import sys

import torch

from undivided.kernels.aot import SHARED_LIMIT
from undivided.kernels.catalogue import CATALOGUE, compiled


def attention_features():
    from undivided.kernels.attention.compiled import KERNELS, compile_attention

    flags = ("HAS_LEFT", "HAS_RIGHT", "HAS_KEY_LENGTHS", "HAS_QUERY_LENGTHS", "HAS_SOFTCAP", "HAS_DROPOUT", "HAS_MASK")
    common = dict.fromkeys((*flags, "HAS_SHIFTS"), True)
    for name in KERNELS:
        for bias in ("HAS_BIAS", "HAS_RELATIVE", "HAS_ALIBI"):
            own = {"HAS_SINKS": True} if name == "forward" else {}
            own |= {"NEEDS_TABLE": bias == "HAS_RELATIVE", "BLOCK_B": 32} if name == "dq" else {}
            yield f"{name} {bias}", 90, compile_attention(name, 64, torch.float16, 90, **common, **own, **{bias: True})
        if name != "dbias":
            yield f"{name} packed", 90, compile_attention(name, 40, torch.float32, 90, PACKED=True)


def decode_features():
    """Every feature at once; a cache without an append; blocks of no power of two; the largest head_dim."""
    from undivided.kernels.attention_decode.compiled import compile_decode

    yield "everything", 90, compile_decode(64, torch.float16, 90, features=True, seqlen_q=2, group=8)
    yield "cross attention", 90, compile_decode(64, torch.bfloat16, 90, appends=False)
    yield "head_dim 40, float32", 90, compile_decode(40, torch.float32, 90, block_size=5)
    yield "rotary, head_dim 40", 90, compile_decode(40, torch.float16, 90, rotary=True, seqlen_q=2)
    yield "head_dim 256", 90, compile_decode(256, torch.bfloat16, 90, group=8, split=True)


def feed_forward_others():
    """Widths that are no multiple of a tile's, and float32."""
    from undivided.kernels.feed_forward.compiled import KERNELS, compile_feed_forward

    for name in KERNELS:
        for gated in (False, True):
            kind = f"{name} {'gated' if gated else 'plain'}"
            yield f"{kind} uneven", 90, compile_feed_forward(name, "gelu", gated, torch.float16, 90, even=False)
            yield f"{kind} float32", 90, compile_feed_forward(name, "gelu", gated, torch.float32, 90)


def catalogue(op, *words):
    for name, entry in CATALOGUE[op]():
        if all((word.removeprefix("-") in name) != word.startswith("-") for word in words):
            for capability in SHARED_LIMIT:
                for found, resources in compiled(entry, name, capability):
                    yield found, capability, resources


what = sys.argv[1]
for found, capability, resources in catalogue(*sys.argv[1:]) if what in CATALOGUE else globals()[what]():
    line = {"kernel": found, "capability": capability, **vars(resources), "limit": SHARED_LIMIT[capability]}
    print(json.dumps(line), flush=True)
