"""The Triton launchers of layer norm, under the names that every backend of kernels has."""

from ..kernels.layer_norm.backward import layer_norm_backward
from ..kernels.layer_norm.forward import layer_norm_forward

__all__ = ["layer_norm_backward", "layer_norm_forward"]
