"""A call of torch's scaled_dot_product_attention in this package's words, or the reason why it has none.

torch's layout is (..., nheads, seqlen, head_dim), ours (batch, seqlen, nheads, head_dim): one is a view of the other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.checks import autocast_to
from ..ops.derivatives import refuse_transforms

NESTED = "nested and sparse tensors have no strides to read by"
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


class Call(NamedTuple):
    """q, k, v as `undivided.attention` takes them; at most one of mask and bias."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    bias: Tensor | None
    leading: tuple[int, ...]  # torch's dimensions before nheads; (1,) where it has none
    dims: int  # torch's number of dimensions

    def result(self, out: Tensor) -> Tensor:
        """`out` of `undivided.attention` in torch's layout."""
        out = out.transpose(1, 2)
        if self.dims > 4:
            return out.unflatten(0, self.leading)
        return out if self.dims == 4 else out[0] if self.dims == 3 else out[0, 0]


def translate(
    query: Any, key: Any, value: Any, *, attn_mask: Any, dropout_p: Any, is_causal: Any, scale: Any, enable_gqa: Any
) -> Call | str:
    """The call in our words, or a sentence that says why torch's own function must have it.

    What torch itself refuses goes to torch too, so that its error is the one that is raised.
    """
    reason = _kind(query, key, value, attn_mask) or _numbers(dropout_p, is_causal, scale, attn_mask)
    if reason is None and not isinstance(enable_gqa, bool):
        reason = f"enable_gqa {enable_gqa!r} is not True or False"
    if reason is not None:
        return reason
    query, key, value = autocast_to(query, key, value)
    reason = _types(query, key, value, attn_mask) or _sizes(query, key, value)
    if reason is not None:
        return reason
    leading, nheads, nheads_kv = _heads(query, key, value, enable_gqa)
    if nheads == 0:
        return "the heads of query, key and value do not fit together as one group of heads"
    if attn_mask is not None and not _fits(attn_mask, (*leading, nheads, query.shape[-2], key.shape[-2])):
        return f"attn_mask {tuple(attn_mask.shape)} does not broadcast to the scores"
    mask = None if attn_mask is None else _four_dims(attn_mask, leading)
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    return Call(
        _ours(query, leading, nheads),
        _ours(key, leading, nheads_kv),
        _ours(value, leading, nheads_kv),
        mask=mask if is_bool else None,
        bias=None if is_bool else mask,
        leading=leading,
        dims=query.dim(),
    )


def is_bottom_right(attn_mask: Any, query: Tensor, key: Tensor) -> bool:
    """Whether the mask is torch.nn.attention.bias.causal_lower_right of the size of the scores.

    By name: that module loads torch's compiler, which takes seconds.
    """
    kind = type(attn_mask)
    if (kind.__module__, kind.__name__) != ("torch.nn.attention.bias", "CausalBias"):
        return False
    sizes = (attn_mask.seq_len_q, attn_mask.seq_len_kv)
    return attn_mask.variant.name == "LOWER_RIGHT" and sizes == (query.shape[-2], key.shape[-2])


def _kind(query: Any, key: Any, value: Any, attn_mask: Any) -> str | None:
    tensors = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    if not all(isinstance(t, Tensor) for t in tensors):
        return "an argument that must be a tensor is none"
    if any(t.is_nested or t.layout != torch.strided for t in tensors):
        return NESTED
    if torch.compiler.is_compiling():
        return None
    if torch.jit.is_tracing():
        return "torch.jit.trace records torch's own ops only"
    try:
        refuse_transforms("attention", *tensors)
    except NotImplementedError as refusal:
        return str(refusal).partition(";")[0]
    return None


def _numbers(dropout_p: Any, is_causal: Any, scale: Any, attn_mask: Any) -> str | None:
    if not isinstance(is_causal, bool):
        return f"is_causal {is_causal!r} is not True or False"
    if is_causal and attn_mask is not None:
        return "attn_mask and is_causal together are left to torch's rules"
    if not _is_number(dropout_p) or not 0.0 <= dropout_p < 1.0:
        return f"dropout_p {dropout_p} is not at least 0 and under 1"
    if scale is not None and (not _is_number(scale) or not -math.inf < scale < math.inf):
        return "scale is not a finite number"
    return None


def _is_number(value: Any) -> bool:
    """Not True or False, which torch takes for 1 and 0."""
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def _types(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> str | None:
    if not query.dtype == key.dtype == value.dtype or not query.device == key.device == value.device:
        return "query, key and value differ in dtype or device"
    if attn_mask is None:
        return None
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        return f"attn_mask has dtype {attn_mask.dtype}, which is not bool, float32 or the query's"
    return None if attn_mask.device == query.device else "attn_mask is on another device"


def _sizes(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    dims = query.dim()
    if dims < 2 or key.dim() != dims or value.dim() != dims:
        return "query, key and value need the same number of dimensions, at least 2"
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return "query and key differ in head_dim, or key and value in seqlen"
    if query.numel() == 0 or key.numel() == 0 or value.numel() == 0:
        return "an empty tensor has nothing to compute"
    return None


def _heads(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[tuple[int, ...], int, int]:
    """(leading, nheads, nheads_kv), nheads 0 where they do not fit.

    Without enable_gqa all dimensions broadcast; a single key head that all queries share is a group too.
    """
    if query.dim() == 2:
        return (1,), 1, 1
    shapes = [t.shape[:-2] for t in (query, key, value)]
    leading: tuple[int, ...] = (1,)
    for sizes in zip(*(shape[:-1] for shape in shapes), strict=True):
        leading = (*leading, _broadcast(*sizes))
    leading = leading[1:] or leading
    nheads, of_keys, of_values = (shape[-1] for shape in shapes)
    if 0 in leading:
        return leading, 0, 0
    if of_keys == of_values and (nheads == of_keys or of_keys == 1 or (enable_gqa and nheads % of_keys == 0)):
        return leading, nheads, of_keys
    nheads = 0 if enable_gqa else _broadcast(nheads, of_keys, of_values)
    return leading, nheads, nheads


def _broadcast(*sizes: int) -> int:
    """The one size that the others equal or, being 1, broadcast to; 0 where there is none."""
    full = sizes[0]
    for size in sizes[1:]:
        if size != full and full != 1 and size != 1:
            return 0
        full = size if full == 1 else full
    return full


def _fits(mask: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the mask broadcasts to the scores, with no dimension more than they have."""
    if not 2 <= mask.dim() <= len(shape):
        return False
    return all(size in (1, full) for size, full in zip(mask.shape, shape[-mask.dim() :], strict=True))


def _ours(x: Tensor, leading: tuple[int, ...], nheads: int) -> Tensor:
    """(..., nheads, seqlen, head_dim) as (batch, seqlen, nheads, head_dim)."""
    x = x[(None,) * (4 - x.dim())]
    if x.shape[:-2] != (*leading, nheads):
        x = x.expand(*leading, nheads, -1, -1)
    return (x.flatten(0, -4) if x.dim() > 4 else x).transpose(1, 2)


def _four_dims(mask: Tensor, leading: tuple[int, ...]) -> Tensor:
    """At most 4 dimensions, still of size 1 where it broadcasts, wherever the batch is one dimension of torch's too."""
    if mask.dim() <= 3 or len(leading) == 1:
        return mask
    mask = mask[(None,) * (len(leading) + 3 - mask.dim())]
    if any(size != 1 for size in mask.shape[:-3]):
        mask = mask.expand(*leading, *mask.shape[-3:])
    return mask.flatten(0, -4)
