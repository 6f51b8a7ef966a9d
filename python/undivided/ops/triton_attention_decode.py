"""The Triton launcher of attention with caches, under the name that every backend of kernels has."""

from ..kernels.attention_decode import attention_decode

__all__ = ["attention_decode"]
