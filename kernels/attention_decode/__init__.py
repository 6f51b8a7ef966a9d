"""Attention of a few new queries over a cache of keys and values, contiguous or paged; new ones are appended to it."""

from .forward import attention_decode

__all__ = ["attention_decode"]
