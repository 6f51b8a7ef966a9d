"""Batches of pairs of like length, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tasks.vocabulary import BEGIN, END, PAD

# Pairs are sorted by length within chunks of this many batches: enough that a batch is nearly all of one length, few
# enough that the batches of two epochs differ.
CHUNK_BATCHES = 64


@dataclass(frozen=True)
class Batch:
    """One step's input. `targets` is what is to be predicted: `tgt` without begin, followed by end, or labels.

    src (batch, longest source, ...), tgt and targets (batch, longest target), int64, padded with 0 on the right;
    src_lengths and tgt_lengths (batch,) int32; `tokens` is the number of targets that are no padding. With labels
    there is nothing to read for the model in `tgt`: it is the same tensor as `targets`.
    """

    src: Tensor
    src_lengths: Tensor
    tgt: Tensor
    targets: Tensor
    tgt_lengths: Tensor
    tokens: int


class Rows:
    """Rows of unlike length, one after the other in one tensor, so that the longest does not decide the memory.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, rows: Sequence[Sequence[Any]], device: torch.device | str) -> None:
        if not rows:
            raise ValueError("there is nothing to train on: 0 rows were given, at least 1 is needed")
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.values = torch.tensor([one for row in rows for one in row], dtype=torch.int64).to(device)

    def take(self, rows: Tensor) -> Tensor:
        """The rows numbered `rows` (int64, on the CPU): (batch, longest of them, ...), padded with 0 on the right."""
        lengths = self.lengths[rows]
        columns = torch.arange(int(lengths.max()))
        inside = columns < lengths[:, None]
        places = torch.where(inside, self.starts[rows][:, None] + columns, 0).to(self.values.device, non_blocking=True)
        taken = self.values[places]
        outside = ~inside.to(taken.device, non_blocking=True)
        return taken.masked_fill_(outside.view(*outside.shape, *(1,) * (taken.dim() - 2)), PAD)


class Examples:
    """All pairs on `device`, so that a batch is a few look-ups.

    `shifted` targets are sequences that are written symbol by symbol; others are labels, as they are.

    Raises:
        ValueError: there are no pairs, or a source is empty.
    """

    def __init__(
        self, pairs: Sequence[tuple[Sequence[Any], Sequence[int]]], device: torch.device | str, shifted: bool = True
    ) -> None:
        self.shifted = shifted
        self.src = Rows([source for source, _ in pairs], device)
        self.tgt = Rows([[BEGIN, *target, END] if shifted else target for _, target in pairs], device)
        self.src_lengths, self.tgt_lengths = self.src.lengths, self.tgt.lengths
        if int(self.src_lengths.min()) == 0:
            raise ValueError(f"source {self.src_lengths.argmin().item()} is empty, at least 1 symbol is needed")
        self.device = self.src.values.device

    def __len__(self) -> int:
        return len(self.src_lengths)

    def batch(self, rows: Tensor) -> Batch:
        """The pairs numbered `rows` (int64, on the CPU), cut to the longest of them."""
        src_lengths, tgt_lengths = self.src_lengths[rows], self.tgt_lengths[rows] - int(self.shifted)
        tgt = self.tgt.take(rows)
        return Batch(
            src=self.src.take(rows),
            src_lengths=src_lengths.to(self.device, non_blocking=True),
            tgt=tgt[:, :-1] if self.shifted else tgt,
            targets=tgt[:, 1:] if self.shifted else tgt,
            tgt_lengths=tgt_lengths.to(self.device, non_blocking=True),
            tokens=int(tgt_lengths.sum()),
        )


class Batches:
    """An endless iterator of batches whose position can be stored and restored.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.epoch = self.index = 0
        self._order: list[Tensor] | None = None

    def __len__(self) -> int:
        """Batches an epoch; the last one may be short."""
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._order is None:
            self._order = self.order(self.epoch)
        batch = self.examples.batch(self._order[self.index])
        self.index += 1
        if self.index == len(self._order):
            self.epoch, self.index, self._order = self.epoch + 1, 0, None
        return batch

    def order(self, epoch: int) -> list[Tensor]:
        """The rows of every batch of `epoch`, in order."""
        # torch's generator on the CPU uses the low 32 bits of a seed alone, so both numbers must be mixed into those.
        mixed = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()[:4]
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
        rows = torch.randperm(len(self.examples), generator=generator)
        chunk = torch.arange(len(rows)) // (CHUNK_BATCHES * self.batch_size)
        key = (chunk << 32) + self.examples.src_lengths[rows].long() * 65536 + self.examples.tgt_lengths[rows]
        rows = rows[torch.argsort(key, stable=True)]
        batches = rows.split(self.batch_size)
        return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]

    def position(self) -> dict[str, int]:
        """What `restore` needs to go on with the next batch."""
        return {"epoch": self.epoch, "index": self.index}

    def restore(self, position: dict[str, int]) -> None:
        """Continues at a stored position.

        Raises:
            ValueError: it is outside an epoch of this data, so data or batch size differ.
        """
        if not 0 <= position["index"] < len(self):
            raise ValueError(f"batch {position['index']} of an epoch of {len(self)}: the data or batch size differ")
        self.epoch, self.index, self._order = position["epoch"], position["index"], None
