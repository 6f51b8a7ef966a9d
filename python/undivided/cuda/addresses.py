"""What the extension's CUDA functions are told of tensors: codes, addresses, the stream."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.bfloat16: 1, torch.float16: 2}  # the codes of csrc/cuda/dtype.h
# What the copy engine asks of addresses and strides, in bytes, and what no stride may reach.
ALIGNMENT = 16
FARTHEST = 2**40


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def stream_of(device: torch.device) -> int:
    """The handle of torch's current stream on the device."""
    return torch.cuda.current_stream(device).cuda_stream
