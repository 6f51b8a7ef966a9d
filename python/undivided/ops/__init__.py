"""The public ops: contract, validation, autograd and choice of backend."""

from .attention import attention, attention_packed
from .attention_decode import attention_decode
from .explain import explain
from .feed_forward import feed_forward
from .layer_norm import layer_norm
from .linear import linear
from .merge import merge_attention
from .rms_norm import rms_norm
from .rotary import rotary

__all__ = [
    "attention",
    "attention_decode",
    "attention_packed",
    "explain",
    "feed_forward",
    "layer_norm",
    "linear",
    "merge_attention",
    "rms_norm",
    "rotary",
]
