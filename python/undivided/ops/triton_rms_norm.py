"""The Triton launchers of rms norm, under the names that every backend of kernels has."""

from ..kernels.rms_norm.backward import rms_norm_backward
from ..kernels.rms_norm.forward import rms_norm_forward

__all__ = ["rms_norm_backward", "rms_norm_forward"]
