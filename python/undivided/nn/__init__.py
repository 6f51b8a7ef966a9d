"""The layers of a transformer, on the public ops."""

from .attention import MultiHeadAttention
from .cache import Cache
from .feed_forward import FeedForward
from .linear import Linear
from .norms import LayerNorm, RMSNorm
from .packing import Packing, pack, unpack
from .positions import POSITIONS, Alibi, Fixed, Learned, Positions, Relative, Rotary, Sinusoidal, make_positions

__all__ = [
    "POSITIONS",
    "Alibi",
    "Cache",
    "FeedForward",
    "Fixed",
    "LayerNorm",
    "Learned",
    "Linear",
    "MultiHeadAttention",
    "Packing",
    "Positions",
    "RMSNorm",
    "Relative",
    "Rotary",
    "Sinusoidal",
    "make_positions",
    "pack",
    "unpack",
]
