"""One case on one backend against the float64 reference: forward and every gradient.

Three runs of the same numbers: the backend, the reference in float64, and plain PyTorch in the backend's dtype, whose
error sets the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from ..reference import RelativeBias
from . import honest
from .cases import AttentionCase, FeedForwardCase, NormCase, RotaryCase, make_inputs, widened
from .decode_cases import DecodeCase, make_decode_inputs
from .tolerance import Verdict, check, largest_value

Run = Callable[..., tuple[Tensor, ...]]


def compare(
    names: tuple[str, ...], tensors: dict[str, Tensor], ours: Run, exact: Run, plain: Run, backward: bool
) -> list[Verdict]:
    """Verdicts for the outputs, named by `names`, and for the gradient of each of `tensors`."""
    results = []
    for run, dtype in ((ours, None), (exact, torch.float64), (plain, None)):
        leaves = {
            name: value.detach().to(dtype or value.dtype).requires_grad_(backward) for name, value in tensors.items()
        }
        outputs = run(**leaves)
        grads = gradients(outputs[: len(names)], leaves) if backward else {}
        results.append((outputs, grads))
    (got, got_grads), (expected, expected_grads), (rough, rough_grads) = results
    scale = max(largest_value(value) for value in (*expected, *expected_grads.values()))
    columns = zip(names, got, expected, rough, strict=False)
    verdicts = [check(name, mine, right, plainly, scale) for name, mine, right, plainly in columns]
    for name, grad in got_grads.items():
        verdicts.append(check(f"d{name}", grad, expected_grads[name], rough_grads[name], scale))
    return verdicts


def gradients(outputs: tuple[Tensor, ...], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a fixed random weighting of the outputs; infinite outputs (an empty row's lse) have none."""
    generator = torch.Generator().manual_seed(1)
    loss = None
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device, output.dtype)
        term = (torch.where(output.isfinite(), output, 0) * weights).sum()
        loss = term if loss is None else loss + term
    assert loss is not None
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def attention(
    case: AttentionCase, dtype: torch.dtype, backend: str, device: str = "cpu", backward: bool = True, seed: int = 0
) -> list[Verdict]:
    """out, lse and the gradients of q, k, v and whichever of bias, table and sinks the case has.

    Raises BackendRefused where the backend cannot run the case.
    """
    tensors, words = make_inputs(case, dtype, device, seed)
    bias = words.get("bias")
    if isinstance(bias, RelativeBias):
        tensors["table"] = bias.table
    elif isinstance(bias, Tensor):
        tensors["bias"] = words.pop("bias")
    if case.sinks:
        tensors["sinks"] = words.pop("sinks")

    def arguments(values: dict[str, Tensor]) -> dict[str, Any]:
        own = {**widened(words, values["q"].dtype), **values}
        if "table" in own:
            own["bias"] = RelativeBias(own.pop("table"), bias.max_distance, bias.bidirectional)  # type: ignore[union-attr]
        return own

    packed = case.packed_q is not None
    op = ops.attention_packed if packed else ops.attention
    definition = reference.attention_packed if packed else reference.attention
    with_lse = backend != "sdpa"

    def ours(**values: Tensor) -> Any:
        result = op(**arguments(values), return_lse=with_lse, backend=backend)  # type: ignore[operator]
        return result if with_lse else (result,)

    def exact(**values: Tensor) -> Any:
        return definition(**arguments(values), return_lse=True)  # type: ignore[operator]

    def plain(**values: Tensor) -> Any:
        return (honest.attention_packed if packed else honest.attention)(**arguments(values))

    names = ("out", "lse") if with_lse else ("out",)
    verdicts = compare(names, tensors, ours, exact, plain, backward)
    if case.rotary and backward:  # without gradients a kernel may turn by itself
        verdicts += compare(names, tensors, ours, exact, plain, backward=False)
    return verdicts


def attention_decode(case: DecodeCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> list[Verdict]:
    """out, lse and the caches after the call: the bits that the reference leaves, but for the rounding of turned keys.

    Raises BackendRefused where the backend cannot run the case.
    """
    tensors, words = make_decode_inputs(case, dtype, device)

    def arguments(to: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
        wide = widened({**tensors, **words}, to)
        caches = {name: wide.pop(name) for name in ("k_cache", "v_cache")}
        writes = case.seqlen_new > 0
        return {name: cache.clone() if writes else cache for name, cache in caches.items()}, wide

    runs: list[Any] = []
    several: Any = (
        (ops.attention_decode, dtype, {"backend": backend}),
        (reference.attention_decode, torch.float64, {}),
        (honest.attention_decode, dtype, {}),
    )
    for op, to, more in several:
        caches, others = arguments(to)
        runs.append((*op(**caches, **others, **more, return_lse=True), *caches.values()))
    scale = max(largest_value(value) for value in runs[1][:2])
    results = zip(("out", "lse"), zip(*(run[:2] for run in runs), strict=True), strict=True)
    verdicts = [check(name, ours, exact, plain, scale) for name, (ours, exact, plain) in results]
    for name, *left in zip(("k_cache", "v_cache"), *(run[2:] for run in runs), strict=True):
        got, right, plain = (cache.nan_to_num() for cache in left)
        same = torch.equal(left[0].isnan(), left[1].isnan())
        if same and case.rotary and name == "k_cache":
            verdicts.append(check(name, got, right, plain, scale))
        else:
            same = same and torch.equal(got, right.to(dtype))
            verdicts.append(Verdict(name, 0.0 if same else math.inf, 0.0))
    return verdicts


def norm(
    op: str, case: NormCase, dtype: torch.dtype, backend: str, device: str = "cpu", backward: bool = True
) -> list[Verdict]:
    """y (and the sum, with a residual) and the gradients of x, residual, weight and bias.

    op: layer_norm or rms_norm.
    """
    generator = torch.Generator().manual_seed(0)
    weights = dtype if case.weight_dtype is None else getattr(torch, case.weight_dtype)

    def draw(*shape: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, to)

    tensors = {"x": draw(case.rows, case.columns) * 2 + 1}
    if case.weight:
        tensors["weight"] = draw(case.columns, to=weights)
    if case.bias and op == "layer_norm":
        tensors["bias"] = draw(case.columns, to=weights)
    if case.residual:
        tensors["residual"] = draw(case.rows, case.columns)

    def run(function: Any, **extra: Any) -> Run:
        def body(**values: Tensor) -> Any:
            result = function(**values, eps=1e-5, **extra)
            return result if case.residual else (result,)

        return body

    names = ("y", "summed") if case.residual else ("y",)
    ours, exact, plain = (getattr(place, op) for place in (ops, reference, honest))
    return compare(names, tensors, run(ours, backend=backend), run(exact), run(plain), backward)


def feed_forward(
    case: FeedForwardCase, dtype: torch.dtype, backend: str, device: str = "cpu", backward: bool = True
) -> list[Verdict]:
    """out and the gradients of x and of every weight."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = dict(x=(case.rows, case.d_model), w_in=(case.d_ff, case.d_model))
    shapes["w_out"] = (case.d_model, case.d_ff)
    shapes |= dict(b_in=(case.d_ff,), b_out=(case.d_model,)) if case.biases else {}
    shapes |= dict(w_gate=(case.d_ff, case.d_model)) if case.gated else {}
    tensors = {}
    for name, shape in shapes.items():
        scale = 1.0 if name[0] != "w" else shape[-1] ** -0.5
        value = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        tensors[name] = value.to(device, dtype)

    def run(function: Any, **extra: Any) -> Run:
        absent = {name: None for name in ("b_in", "b_out") if name not in tensors}
        return lambda **values: (function(**values, **absent, activation=case.activation, **extra),)

    ours, exact, plain = (place.feed_forward for place in (ops, reference, honest))
    return compare(("out",), tensors, run(ours, backend=backend), run(exact), run(plain), backward)


def rotary(
    case: RotaryCase, dtype: torch.dtype, backend: str, device: str = "cpu", backward: bool = True
) -> list[Verdict]:
    """y and the gradient of x."""
    longest = 2 * case.seqlen + 1
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.seqlen, case.nheads, case.head_dim)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    cos, sin = reference.rotary_tables(longest, case.head_dim, device=device)
    positions = None
    if case.positions != "order":
        rows = (case.batch,) if case.positions == "row" else ()
        positions = torch.randint(longest, (*rows, case.seqlen), generator=generator).to(device)

    def run(function: Any, **extra: Any) -> Run:
        return lambda x: (function(x, cos, sin, positions, **extra),)

    ours, exact, plain = (place.rotary for place in (ops, reference, honest))
    return compare(("y",), {"x": x}, run(ours, backend=backend), run(exact), run(plain), backward)
