"""Run in a process of its own, without the interpreter: compiles what its arguments name and prints JSON lines.

Arguments: attention | attention_features | norms | feed_forward.
"""

import json
import sys

import torch

from undivided.kernels.aot import SHARED_LIMIT


def attention():
    from undivided.kernels.attention.compiled import compile_attention

    for capability in SHARED_LIMIT:
        for head_dim in (64, 128):
            for name in ("forward", "dq", "dkdv"):
                for causal in (False, True):
                    name_of = f"{name} head_dim {head_dim} {'causal' if causal else 'full'}"
                    yield name_of, capability, compile_attention(name, head_dim, torch.bfloat16, capability, causal)


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


def feed_forward():
    from undivided.kernels.feed_forward.compiled import KERNELS, compile_feed_forward

    for name in KERNELS:
        for gated in (False, True):
            kind = f"{name} {'gated' if gated else 'plain'}"
            for activation in ("relu", "gelu", "gelu_tanh", "silu"):
                for capability in SHARED_LIMIT:
                    resources = compile_feed_forward(name, activation, gated, torch.bfloat16, capability)
                    yield f"{kind} {activation}", capability, resources
            yield f"{kind} uneven", 90, compile_feed_forward(name, "gelu", gated, torch.float16, 90, even=False)
            yield f"{kind} float32", 90, compile_feed_forward(name, "gelu", gated, torch.float32, 90)


def norms():
    """20000 columns go by chunks forward, as 16384 do backward; 8192 are the widest whole row backward."""
    from undivided.kernels.norm.compiled import compile_norm

    widths = {"forward": (512, 1024, 4096, 16384, 20000), "backward": (512, 1024, 4096, 8192, 16384)}
    for capability in SHARED_LIMIT:
        for op in ("layer_norm", "rms_norm"):
            for weights in (torch.bfloat16, torch.float32):
                for direction, columns in ((name, width) for name in widths for width in widths[name]):
                    words = (direction, columns, torch.bfloat16, weights, capability, op == "layer_norm")
                    for name, resources in compile_norm(*words).items():
                        yield f"{op} {name} {columns} columns, weights {weights}", capability, resources


for found, capability, resources in globals()[sys.argv[1]]():
    line = {"kernel": found, "capability": capability, **vars(resources), "limit": SHARED_LIMIT[capability]}
    print(json.dumps(line), flush=True)
