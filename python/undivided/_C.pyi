"""The compiled extension: its functions take addresses, sizes and strides, and check nothing; *_direct take tensors."""

from typing import Any

def __getattr__(name: str) -> Any: ...
