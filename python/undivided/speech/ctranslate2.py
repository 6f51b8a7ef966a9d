"""The file of weights that CTranslate2 writes (`model.bin`), read without that library.

Little-endian: the version of the format; the name of the kind of model and its revision; the number of variables and
for each its name, rank, sizes, number of its dtype, number of bytes and values; the number of aliases and for each its
name and that of a variable. A string is its length with the zero that ends it, then its bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

VERSION = 6
DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Stored:
    """kind: `WhisperSpec`, ...; revision: of the kind; tensors: by name, aliases too, in the dtypes of the file."""

    kind: str
    revision: int
    tensors: dict[str, Tensor]


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, bytearray(path.read_bytes()), 0

    def bytes(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise ValueError(f"{self.path} ends at byte {len(self.data)}, {end} are needed: it is cut off or no model")
        found, self.at = memoryview(self.data)[self.at : end], end
        return found

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        return bytes(self.bytes(self.number("H"))[:-1]).decode()

    def tensor(self) -> Tensor:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype, size = self.number("B"), self.number("I")
        if dtype >= len(DTYPES):
            raise ValueError(f"{self.path}: dtype number {dtype} is unknown; allowed: 0 to {len(DTYPES) - 1}")
        return torch.frombuffer(self.bytes(size), dtype=DTYPES[dtype]).reshape(shape)


def read_model(path: str | Path) -> Stored:
    """The variables of a model file; their values stay where they were read to.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is cut off, of another version, or no such file.
    """
    reader = _Reader(Path(path))
    if (version := reader.number("I")) != VERSION:
        raise ValueError(f"{path} has version {version} of the format, or is no model; allowed: {VERSION}")
    kind, revision = reader.string(), reader.number("I")
    tensors = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        tensors[name] = reader.tensor()
    for _ in range(reader.number("I")):
        name = reader.string()
        tensors[name] = tensors[reader.string()]
    return Stored(kind, revision, tensors)
