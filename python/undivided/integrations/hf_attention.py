"""Hugging Face's attention function on `undivided.attention`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import _active_collector

from ..ops import attention, attention_packed
from ..ops.checks import readable
from ..reference import RelativeBias, attention_weights
from ..reference.attention import additive_bias
from ..reference.mask import positions
from .hf_masks import KeyMask, PackedMask
from .hf_models import OWN_PADDING_MASK, UNKNOWN_WORDS, cannot_follow

# For all models of the process: which backend the ops take.
SETTINGS = {"backend": "auto"}


@dataclass(frozen=True, eq=False)
class PositionBias:
    """What an accelerated T5 hands from layer to layer instead of (1, nheads, seqlen_q, seqlen_k) numbers.

    query_offset: tokens that were seen before, int or a tensor with one element.
    """

    bias: RelativeBias | None
    query_offset: int | Tensor = 0


def undivided_attention(
    module: nn.Module,
    query: Tensor,  # (batch, nheads, seqlen_q, head_dim)
    key: Tensor,  # (batch, nheads_kv, seqlen_k, head_dim)
    value: Tensor,
    attention_mask: KeyMask | PackedMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: PositionBias | Tensor | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    cache: Any = None,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: (out, weights), out (batch, seqlen_q, nheads, head_dim).

    weights are None unless output_attentions is True or transformers collects them: then they are the probabilities
    before dropout, (batch, nheads, seqlen_q, seqlen_k), from the reference. Dropout draws its seed from torch's default
    generator.

    Raises:
        ValueError: a paged cache; keys that the model picks for each query; or no mask in a call whose meaning hangs on
            one.
        TypeError: a mask of a dtype that is neither bool nor float.
    """
    if cache is not None:
        raise ValueError("attn_implementation='undivided' has no paged cache (continuous batching); use 'paged|eager'")
    for word in UNKNOWN_WORDS:
        if others.get(word) is not None:
            raise ValueError(cannot_follow(type(module).__name__, word))
    if query.shape[0] == 1 != key.shape[0]:  # learned queries that the whole batch shares
        query = query.expand(key.shape[0], -1, -1, -1)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    drop = dropout if module.training else 0.0
    if isinstance(attention_mask, PackedMask):
        bias = position_bias.bias if isinstance(position_bias, PositionBias) else position_bias
        return packed(q, k, v, attention_mask, bias, scale=scaling, softcap=softcap, sinks=s_aux, dropout_p=drop), None
    words = mask_words(module, attention_mask, is_causal, sliding_window, q, k)
    if position_bias is not None:
        add_bias(words, position_bias, q, k)
    words.update(scale=scaling, softcap=softcap, sinks=s_aux)
    out = attention(q, k, v, **words, dropout_p=drop, backend=SETTINGS["backend"])
    assert isinstance(out, Tensor)  # a pair only where the lse is asked for
    wanted = output_attentions or collects_weights()
    return out, attention_weights(q, k, **words).to(query.dtype) if wanted else None


def collects_weights() -> bool:
    """Whether transformers picks weights up behind the attention of the running model, which need not say so to it."""
    if torch.compiler.is_compiling() and not _active_collector.compiling:  # no graph can look into a ContextVar
        return False
    return any(name.endswith("attentions") for name in _active_collector.get() or ())


def packed(q: Tensor, k: Tensor, v: Tensor, mask: PackedMask, bias: Any, **words: Any) -> Tensor:
    """q, k, v: (1, total, nheads, head_dim), the tokens of either side."""
    out = attention_packed(
        q[0],
        k[0],
        v[0],
        cu_seqlens_q=mask.queries.cu_seqlens,
        cu_seqlens_k=mask.keys.cu_seqlens,
        max_seqlen_q=mask.queries.longest,
        max_seqlen_k=mask.keys.longest,
        window=mask.window,
        bias=bias,
        **words,
        backend=SETTINGS["backend"],
    )
    assert isinstance(out, Tensor)  # a pair only where the lse is asked for
    return out[None]


def mask_words(
    module: nn.Module, mask: Any, is_causal: bool | None, sliding_window: int | None, q: Tensor, k: Tensor
) -> dict[str, Any]:
    """The mask as keywords of `undivided.attention`; q, k: (batch, seqlen, nheads, head_dim)."""
    if isinstance(mask, KeyMask):
        return mask.words(q.shape[1], k.shape[1], q.device)
    if mask is None:
        return words_without_mask(module, is_causal, sliding_window, q.shape[1], k.shape[1])
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"the attention mask is of {kind}; allowed: a bool mask (True is visible) or a float bias")
    if mask.dtype == torch.bool:
        return {"mask": mask}
    if mask.shape[-2] == 1 and getattr(getattr(module, "config", None), "model_type", None) in OWN_PADDING_MASK:
        return {"mask": mask == 0}
    return {"bias": blind_rows_hidden(mask)}


def blind_rows_hidden(mask: Tensor) -> Tensor:
    """A float mask with -inf in the rows of queries that see no key, where transformers has the lowest number.

    With that number in all of a row, a softmax gives every key the same weight, and the lse, of which it is the larger
    part by far, is too coarse to give it again in the backward pass.
    """
    blind = mask.amax(-1, keepdim=True) <= torch.finfo(mask.dtype).min / 2
    if readable(blind) and not bool(blind.any()):
        return mask
    return mask.masked_fill(blind, -torch.inf)


def words_without_mask(
    module: nn.Module, is_causal: bool | None, sliding_window: int | None, seqlen_q: int, seqlen_k: int
) -> dict[str, Any]:
    """Our mask function leaves no causal mask out, so None comes from models that ask for none, as in vision.

    Then the argument is_causal decides, and without it the module's attribute, as in transformers' own functions.
    """
    causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if seqlen_q == 1:
        causal = False
    name = type(module).__name__
    if causal is None:
        raise ValueError(f"{name} gives neither a mask nor is_causal: it is not clear what its queries see")
    if causal and seqlen_q != seqlen_k:
        raise ValueError(
            f"{name} is causal but gives no mask for seqlen_q {seqlen_q} and seqlen_k {seqlen_k}: "
            "it is not clear where its queries stand"
        )
    if sliding_window is not None and seqlen_k > sliding_window:
        raise ValueError(
            f"{name} has sliding_window={sliding_window} but gives no mask for {seqlen_k} keys: "
            "it is not clear which of them its queries see"
        )
    return {"causal": bool(causal)}


def add_bias(words: dict[str, Any], bias: PositionBias | Tensor, q: Tensor, k: Tensor) -> None:
    """Puts a position bias into the keywords; q, k: (batch, seqlen, nheads, head_dim)."""
    if isinstance(bias, Tensor):
        words["bias"] = bias + words["bias"] if "bias" in words else bias
        return
    if bias.bias is None:
        return
    relative = replace(bias.bias, table=bias.bias.table.to(q.device))  # of a model that is split over devices
    batch, seqlen_q, seqlen_k, offset = q.shape[0], q.shape[1], k.shape[1], bias.query_offset
    if isinstance(offset, Tensor):  # a static cache counts in a tensor; a mask of ours has the same number
        words.setdefault("query_offset", offset.to(q.device, torch.int32).reshape(1).expand(batch))
    elif offset != words.get("query_offset", seqlen_k - seqlen_q):
        if "query_offset" in words or words.get("window", (None, None)) != (None, None):
            raise ValueError(
                f"the relative bias starts at position {offset}, the mask elsewhere, with {seqlen_q} queries and "
                f"{seqlen_k} keys"
            )
        words["query_offset"] = offset
    if "bias" not in words:
        words["bias"] = relative
        return
    mask = words["bias"]  # a float mask of the caller's own: the two are one dense bias
    i, j = positions(seqlen_q, seqlen_k, words.get("query_offset"), mask.device)
    words["bias"] = mask + additive_bias(relative, i, j, mask.dtype)
