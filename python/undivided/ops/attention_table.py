"""The attention backends, in the order in which `auto` asks them."""

from __future__ import annotations

import torch

from .. import rules
from ..dispatch import AttentionCall, Backend
from ..rules import (
    faster_than_the_interpreter,
    head_dims,
    kernel_dtype,
    needs_cpu_extension,
    needs_cuda_extension,
    needs_gpu_or_interpreter,
    needs_triton,
    on_cpu,
    on_hopper,
    tensor_cores,
)


def sdpa_words(call: AttentionCall) -> str | None:
    """What torch's scaled_dot_product_attention cannot say exactly as the contract does."""
    refused = {
        "a packed batch": call.packed,
        "softcap": call.softcap,
        "sinks": call.sinks,
        "dropout from a seed": call.dropout,
        "return_lse": call.return_lse,
        "a window": call.window != (None, None) and call.window != (None, 0),
        "query_offset": call.query_offset is not None,
        "query_lengths": call.query_lengths,
        f"a {call.bias} bias": call.bias in ("relative", "alibi"),
    }
    asked = [word for word, present in refused.items() if present]
    return f"torch's kernel has no {', no '.join(asked)}; leave it out or use another backend" if asked else None


def sdpa_square(call: AttentionCall) -> str | None:
    if call.window == (None, 0) and call.seqlen_q != call.seqlen_k:
        return f"torch aligns causal top-left, so only square attention agrees: got {call.seqlen_q} x {call.seqlen_k}"
    if call.window == (None, 0) and (call.mask or call.key_lengths or call.bias):
        return "torch takes causal or a mask, not both"
    return None


MOST_DISTANCE = 1024  # kMostSpan of csrc/cuda/attention_backward.cuh


def cuda_words(call: AttentionCall) -> str | None:
    """What the CUDA C++ attention does not have yet."""
    refused = {
        "mask": call.mask,
        "dense bias": call.bias == "dense",
        "dropout": call.dropout,
        "gradient with softcap": call.needs_grad and call.softcap,
        f"gradient of a relative bias with a max_distance of {call.max_distance}, over {MOST_DISTANCE}": call.needs_grad
        and call.bias == "relative"
        and call.max_distance > MOST_DISTANCE,
        "deterministic gradient (torch.use_deterministic_algorithms is on)": call.needs_grad
        and torch.are_deterministic_algorithms_enabled(),
    }
    asked = [word for word, present in refused.items() if present]
    return f"this kernel has no {', no '.join(asked)}; leave it out or use another backend" if asked else None


def cuda_sizes(call: AttentionCall) -> str | None:
    if call.dtype not in ("bfloat16", "float16"):
        return f"dtype {call.dtype} is not one of bfloat16, float16; cast, or use another backend"
    if call.head_dim != call.head_dim_v or call.head_dim not in (64, 128):
        return f"head_dim {call.head_dim} / head_dim_v {call.head_dim_v} is not 64 or 128, the same for both"
    return None


def torch_fuses(call: AttentionCall) -> bool:
    """Whether torch runs the call on a GPU by a fused kernel, and without a mask as large as the scores."""
    if call.device != "cuda" or call.mask or call.key_lengths or call.bias is not None:
        return False
    if sdpa_words(call) is not None or sdpa_square(call) is not None:
        return False
    step = 4 if call.dtype == "float32" else 8  # 16 bytes
    aligned = call.head_dim % step == 0 and call.head_dim_v % step == 0
    efficient = call.nheads == call.nheads_kv and aligned
    return efficient or (call.dtype != "float32" and call.head_dim == call.head_dim_v)


# Up to how many keys torch's kernel is the faster one without a mask, by head_dim. On an H200 the CUDA C++ forward has
# 0.91 and 0.95 of cuDNN's speed at 512 and 1024 keys and 1.05 to 1.13 beyond at 64; at 128 it has 0.85 to 0.98 up to
# 8192 and 1.00 at 16384. The backward has 0.98 to 1.00, and 0.93 to 0.96.
SHORT = {64: 1024, 128: 8192}


def faster_than_torch_without_a_mask(call: AttentionCall) -> str | None:
    """For `auto`. Causal is not left to torch's row, which also looks for NaN in what is hidden."""
    most = SHORT.get(call.head_dim, 0)
    if call.window != (None, None) or call.seqlen_k > most or not torch_fuses(call):
        return None
    return f"torch's kernel is faster without a mask up to {most} keys at head_dim {call.head_dim}, on an H200"


def faster_than_torch(call: AttentionCall) -> str | None:
    """For `auto`."""
    if not torch_fuses(call):
        return None
    return "torch's kernel is faster without a mask or a bias: on an H200 this one has 0.8 of its speed, 0.7 at 128"


def faster_than_tiles(call: AttentionCall) -> str | None:
    """For `auto`, by the processor's rates and not by a measurement: tiles have sixteen times the operations of float32
    multiplications."""
    if call.dtype != "bfloat16" or not rules.TILES or sdpa_words(call) is not None or sdpa_square(call) is not None:
        return None
    return "torch's kernel uses this processor's tiles (AMX) for bfloat16, this one does not"


CUDA = Backend(
    name="cuda",
    module="undivided.cuda.attention",
    rules=(needs_cuda_extension, on_hopper, cuda_sizes, cuda_words),
    auto_rules=(faster_than_torch_without_a_mask,),
)
TRITON = Backend(
    name="triton",
    module="undivided.ops.triton_attention",
    rules=(needs_triton, needs_gpu_or_interpreter, tensor_cores, kernel_dtype, head_dims),
    auto_rules=(faster_than_the_interpreter, faster_than_torch),
)
CPU = Backend(
    name="cpu",
    module="undivided.cpu.attention",
    rules=(needs_cpu_extension, on_cpu, kernel_dtype, head_dims),
    auto_rules=(faster_than_tiles,),
)
SDPA = Backend(name="sdpa", module="undivided.torch_kernels.attention", rules=(sdpa_words, sdpa_square))
REFERENCE = Backend(name="reference", module="undivided.reference")

ATTENTION: tuple[Backend, ...] = (CUDA, TRITON, CPU, SDPA, REFERENCE)
