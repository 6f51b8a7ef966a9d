"""The Triton launchers of attention, under the names that every backend of kernels has."""

from ..kernels.attention.backward import attention_backward
from ..kernels.attention.forward import attention_forward

__all__ = ["attention_backward", "attention_forward"]
