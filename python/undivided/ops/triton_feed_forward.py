"""The Triton launchers of feed forward, under the names that every backend of kernels has."""

from ..kernels.feed_forward.backward import feed_forward_backward
from ..kernels.feed_forward.forward import feed_forward_forward

__all__ = ["feed_forward_backward", "feed_forward_forward"]
