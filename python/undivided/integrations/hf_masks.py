"""Hugging Face's masks in words: what a query sees as numbers and lengths, not as a tensor of seqlen_q x seqlen_k."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
    prepare_padding_mask,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from ..ops.attention import Window
from ..ops.checks import readable
from .hf_models import HAND_ON


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch that is padded on the right, all in one row.

    Sequence b is tokens cu_seqlens[b] to cu_seqlens[b + 1] (int32 (batch + 1,)) of all; `rows` (total,) int64 are their
    places in the padded batch, laid out as (batch x seqlen).
    """

    batch: int
    seqlen: int
    longest: int
    cu_seqlens: Tensor
    rows: Tensor

    @staticmethod
    def of(lengths: Tensor, seqlen: int) -> Tokens:
        """By lengths int32 (batch,)."""
        kept = torch.arange(seqlen, device=lengths.device) < lengths[:, None]
        ends = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return Tokens(len(lengths), seqlen, int(lengths.max()), ends, kept.flatten().nonzero()[:, 0])

    def take(self, x: Tensor) -> Tensor:
        """(batch, seqlen, d_model) -> (1, total, d_model)."""
        flat = x.flatten(0, 1)
        whole = len(self.rows) == len(flat)  # a memory without padding is a view, in every layer
        return (flat if whole else flat.index_select(0, self.rows))[None]

    def pads(self, x: Tensor) -> bool:
        """Whether x (batch, seqlen, d_model) still has its padding."""
        return x.shape[:2] == (self.batch, self.seqlen)

    def put_back(self, x: Tensor) -> Tensor:
        """The inverse of `take`; padding is 0."""
        whole = x.new_zeros(self.batch * self.seqlen, x.shape[-1])
        return whole.index_copy(0, self.rows, x[0]).view(self.batch, self.seqlen, -1)


@dataclass(frozen=True, eq=False)
class PackedMask:
    """Stands for a mask where the hidden states of both sides have no padding; `window` is that of each sequence."""

    queries: Tokens
    keys: Tokens
    window: Window


@dataclass(frozen=True, eq=False)
class KeyMask:
    """What a mask function was asked for, in the words of `undivided.attention`; our attention function reads it.

    It stands where transformers expects a mask of (batch, 1, seqlen_q, seqlen_k), and is no tensor on purpose: a model
    that adds a mask to its scores, or takes a part of it, fails with a sentence instead of losing what is causal.
    """

    seqlen_q: int
    seqlen_k: int
    window: Window
    query_offset: int | Tensor | None  # of `window`: int32 (batch,) where it is a tensor
    key_lengths: Tensor | None  # int32 (batch,)
    mask: Tensor | None  # bool (batch, 1, 1, seqlen_k), where the padding is not known to be on the right

    ndim: ClassVar[int] = 4  # transformers takes what has two dimensions for the padding of the tokens

    def contiguous(self) -> KeyMask:
        """`generate` makes a mask ahead of the model when it has a static cache, and lays it out."""
        return self

    def words(self, seqlen_q: int, seqlen_k: int, device: torch.device) -> dict[str, Any]:
        """Keywords of `undivided.attention` for these lengths, on the device where a layer of a split model is."""
        if (seqlen_q, seqlen_k) != (self.seqlen_q, self.seqlen_k):
            raise ValueError(
                f"the mask was made for seqlen_q {self.seqlen_q} and seqlen_k {self.seqlen_k}, "
                f"attention is called with {seqlen_q} and {seqlen_k}"
            )
        words: dict[str, Any] = {"window": self.window}
        for name in ("query_offset", "key_lengths", "mask"):
            value = getattr(self, name)
            if value is not None:
                words[name] = value.to(device) if isinstance(value, Tensor) else value
        return words

    @cached_property
    def keys(self) -> Tokens | None:
        """None without padding, or where lengths are not known."""
        lengths = self.key_lengths
        if lengths is None or self.mask is not None or not readable(lengths) or not lengths.any():
            return None
        return Tokens.of(lengths, self.seqlen_k)

    @cached_property
    def packed(self) -> PackedMask | None:
        """Of self-attention; None without padding, or where lengths are not known."""
        if self.query_offset is not None or self.seqlen_q != self.seqlen_k or self.keys is None:
            return None
        return PackedMask(self.keys, self.keys, self.window)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # No TypeError: Tensor.__add__ and its kin would swallow it.
        raise RuntimeError(used(f"gives its attention mask to torch's {getattr(function, '__name__', function)}"))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(used(f"reads .{name} of its attention mask"))


def used(how: str) -> str:
    return (
        f"the model {how}, but attn_implementation='undivided' keeps masks in words; "
        "load the model with attn_implementation='sdpa' or 'eager'"
    )


def undivided_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | KeyMask | None = None,
    allow_is_bidirectional_skip: bool = False,
    config: Any = None,
    **rest: Any,
) -> KeyMask | Tensor | None:
    """transformers' mask function: a KeyMask where the model hands it on and the words can say what was asked for.

    Otherwise a mask of (batch, 1, seqlen_q, seqlen_k): bool for the models that hand it on, float for the others.
    """
    if isinstance(attention_mask, KeyMask):
        return attention_mask
    window = window_of(mask_function, rest.get("local_size"))
    # A bidirectional mask that may not be left out is going to be joined with another.
    joined = window == (None, None) and not allow_is_bidirectional_skip
    hands_on = getattr(config, "model_type", None) in HAND_ON
    if not hands_on or window is None or joined:
        rest |= dict(q_offset=q_offset, kv_offset=kv_offset, mask_function=mask_function, attention_mask=attention_mask)
        make = sdpa_mask if hands_on and not joined else eager_mask
        rest |= dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=allow_is_bidirectional_skip)
        return make(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **rest)
    offset: int | Tensor | None = q_offset - kv_offset
    if isinstance(offset, Tensor):  # a difference is a copy: the cache counts on in q_offset itself
        offset = offset.to(torch.int32).expand(batch_size)
    elif window == (None, None) or offset == kv_length - q_length:
        offset = None
    lengths, mask = padding_words(attention_mask, kv_length, kv_offset)
    return KeyMask(q_length, kv_length, window, offset, lengths, mask)


def window_of(mask_function: Callable, local_size: int | None) -> Window | None:
    """The (left, right) that a mask function of transformers stands for; None where no window says it."""
    if mask_function is causal_mask_function:
        return None, 0
    if mask_function is bidirectional_mask_function:
        return None, None
    # torch.compile cannot look into functions: there a sliding window is a full mask.
    if local_size is None or torch.compiler.is_compiling():
        return None
    if same_function(mask_function, sliding_window_causal_mask_function(local_size)):
        return local_size - 1, 0
    if same_function(mask_function, sliding_window_bidirectional_mask_function(local_size)):
        return local_size, local_size
    return None


def same_function(a: object, b: object) -> bool:
    """Whether two functions have one code and, all the way down, equal values in their closures."""
    if isinstance(a, FunctionType) and isinstance(b, FunctionType):
        inner = [[cell.cell_contents for cell in function.__closure__ or ()] for function in (a, b)]
        return a.__code__ is b.__code__ and same_function(*map(tuple, inner))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same_function(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) is int and a == b


def padding_words(
    attention_mask: Tensor | None, kv_length: int, kv_offset: int | Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(key_lengths, mask) for bool (batch, tokens) of which kv_length from kv_offset are the keys.

    On a CPU a look tells whether there is padding and whether all of it is on the right, where lengths say everything.
    Elsewhere a look would wait for the device, so both are given: the lengths end after the last visible key, and
    what lies past them is skipped; the mask, one row of keys for all queries, says the rest.
    """
    if attention_mask is None:
        return None, None
    padding: Any = prepare_padding_mask(attention_mask, kv_length, kv_offset)  # type: ignore[arg-type]
    if isinstance(kv_offset, Tensor):
        padding = padding[:, torch.arange(kv_length, device=padding.device) + kv_offset]
    else:
        padding = padding[:, kv_offset : kv_offset + kv_length]
    ends = (padding * torch.arange(1, kv_length + 1, dtype=torch.int32, device=padding.device)).amax(-1)
    if readable(padding):
        if bool(padding.all()):
            return None, None
        if torch.equal(padding.sum(-1, dtype=torch.int32), ends):
            return ends, None
    return ends, padding[:, None, None, :]
