"""The layers of a transformer, on the public ops."""

from .attention import Cache, MultiHeadAttention
from .feed_forward import FeedForward
from .norms import LayerNorm, RMSNorm
from .positions import POSITIONS, Alibi, Learned, Positions, Relative, Rotary, Sinusoidal, make_positions

__all__ = [
    "POSITIONS",
    "Alibi",
    "Cache",
    "FeedForward",
    "LayerNorm",
    "Learned",
    "MultiHeadAttention",
    "Positions",
    "RMSNorm",
    "Relative",
    "Rotary",
    "Sinusoidal",
    "make_positions",
]
