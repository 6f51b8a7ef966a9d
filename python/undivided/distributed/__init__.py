"""Attention over a sequence that is spread over many processes. Imported only by who asks for it."""

from .attention import ring_attention
from .zigzag import shard_zigzag, unshard_zigzag

__all__ = ["ring_attention", "shard_zigzag", "unshard_zigzag"]
