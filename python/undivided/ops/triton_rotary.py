"""The Triton launchers of rotary, under the names that every backend of kernels has."""

from ..kernels.rotary.backward import rotary_backward
from ..kernels.rotary.forward import rotary_forward

__all__ = ["rotary_backward", "rotary_forward"]
