"""Other projects' kernels, each found at run time and named with its version."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .op import Absent, Function, Provider

Make = Callable[[Any, str], Function]


def optional(name: str, module: str, packages: Sequence[str], device: str, needs: str, make: Make) -> Provider | Absent:
    """The provider when `module` can be imported, with the version of the first of `packages` that is installed."""
    if needs != device:
        return Absent(name, f"runs on {needs} only")
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Absent(name, f"not installed ({error})")
    return Provider(name, first_version(packages), make)


def first_version(packages: Sequence[str]) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


def attention_peers(device: str) -> list[Provider | Absent]:
    rows: list[tuple[str, str, list[str], Make]] = [
        ("flash-attn 2", "flash_attn", ["flash-attn"], flash("flash_attn")),
        ("flash-attn 3", "flash_attn_interface", ["flash-attn-3", "flash_attn_3"], flash("flash_attn_interface")),
        ("flash-attn 4", "flash_attn.cute", ["flash-attn-4"], flash("flash_attn.cute")),
        ("xformers", "xformers.ops", ["xformers"], xformers),
    ]
    return [optional(name, module, packages, device, "cuda", make) for name, module, packages, make in rows]


def norm_peers(device: str) -> list[Provider | Absent]:
    return [
        optional("liger", "liger_kernel.ops", ["liger-kernel"], device, "cuda", liger_norm),
        optional("quack", "quack", ["quack-kernels"], device, "cuda", quack_norm),
    ]


def feed_forward_peers(device: str) -> list[Provider | Absent]:
    return [optional("liger", "liger_kernel.ops", ["liger-kernel"], device, "cuda", liger_feed_forward)]


def flash(module: str) -> Make:
    """The three generations take the same arguments: (batch, seqlen, nheads, head_dim), causal bottom-right."""

    def make(case: Any, device: str) -> Function:
        refuse(case, "padding", case.lengths and not case.packed)
        refuse(case, "packed batches through this adapter", case.packed)
        refuse(case, "a relative bias", case.bias == "relative")
        refuse(case, "float32", case.dtype == "float32")
        refuse(case, "ALiBi", case.bias == "alibi" and module != "flash_attn")
        function = importlib.import_module(module).flash_attn_func
        slopes = {} if case.bias is None else {"alibi_slopes": case.slopes(device)}

        def call(q: Any, k: Any, v: Any) -> Any:
            out = function(q, k, v, causal=case.causal, **slopes)
            return out[0] if isinstance(out, tuple) else out

        return call

    return make


def xformers(case: Any, device: str) -> Function:
    refuse(case, "padding or packing through this adapter", case.lengths)
    refuse(case, "a bias through this adapter", case.bias)
    refuse(case, "grouped heads through this adapter", case.nheads != case.nheads_kv)
    ops = importlib.import_module("xformers.ops")
    bias = ops.LowerTriangularMask() if case.causal else None
    return lambda q, k, v: ops.memory_efficient_attention(q, k, v, attn_bias=bias)


def liger_norm(case: Any, device: str) -> Function:
    refuse(case, "layer norm with a residual", case.op == "layer_norm" and case.residual)
    if case.op == "layer_norm":
        function = importlib.import_module("liger_kernel.ops.layer_norm").LigerLayerNormFunction.apply
        return lambda x, weight, bias: function(x, weight, bias, 1e-5)
    if case.residual:
        added = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction.apply
        return lambda x, weight, residual: tuple(added(x, residual, weight, 1e-6, 0.0, "llama", False))
    function = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply
    return lambda x, weight: function(x, weight, 1e-6, 0.0, "llama", False)


def quack_norm(case: Any, device: str) -> Function:
    refuse(case, "a trainable layer norm", case.op == "layer_norm")
    function = importlib.import_module("quack").rmsnorm
    if case.residual:
        return lambda x, weight, residual: function(x, weight, residual=residual, eps=1e-6, prenorm=True)
    return lambda x, weight: function(x, weight, eps=1e-6)


def liger_feed_forward(case: Any, device: str) -> Function:
    refuse(case, "a feed-forward network without SwiGLU", case.kind != "swiglu")
    gate = importlib.import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply
    linear = torch.nn.functional.linear
    return lambda x, w_in, w_gate, w_out: linear(gate(linear(x, w_in), linear(x, w_gate)), w_out)


def refuse(case: Any, what: str, asked: Any) -> None:
    if asked:
        raise NotImplementedError(f"it has no {what}")
