"""The oracle: every op as it is defined, in eager torch, on any device, in float64 when asked, slow on purpose."""

from .attention import attention, attention_weights
from .attention_decode import attention_decode
from .bias import ALiBi, RelativeBias, relative_buckets
from .dropout import dropout_mask
from .feed_forward import activate, feed_forward
from .layer_norm import layer_norm
from .mask import visible
from .merge import merge_attention
from .packed import attention_packed
from .positions import sinusoidal
from .rms_norm import rms_norm
from .rotary import rotary, rotary_tables

__all__ = [
    "ALiBi",
    "RelativeBias",
    "activate",
    "attention",
    "attention_decode",
    "attention_packed",
    "attention_weights",
    "dropout_mask",
    "feed_forward",
    "layer_norm",
    "merge_attention",
    "relative_buckets",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "sinusoidal",
    "visible",
]
