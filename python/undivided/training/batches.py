"""Batches of pairs of like length, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..nn import Packing, pack
from ..tasks.vocabulary import BEGIN, END, PAD
from .world import ALONE, World

# Pairs are sorted by length within chunks of this many batches: enough that a batch is nearly all of one length, few
# enough that the batches of two epochs differ.
CHUNK_BATCHES = 64


@dataclass(frozen=True)
class Batch:
    """One step's input. `targets` is what is to be predicted: `tgt` without begin, followed by end, or labels.

    src (batch, longest source, ...), tgt and targets (batch, longest target), int64, padded with 0 on the right;
    src_lengths and tgt_lengths (batch,) int32; `tokens` is the number of targets that are no padding. With labels
    there is nothing to read for the model in `tgt`: it is the same tensor as `targets`. In a packed batch the rows lie
    end to end, (1, total, ...), and what would be lengths are their packings. Where it is one rank's share of a batch,
    `all_tokens` counts the targets of every rank's.
    """

    src: Tensor
    src_lengths: Tensor | Packing
    tgt: Tensor
    targets: Tensor
    tgt_lengths: Tensor | Packing
    tokens: int
    all_tokens: int


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
        if isinstance(rows[0], Tensor):  # such rows stay in their dtype
            values = torch.cat(list(rows))  # type: ignore[arg-type]
        else:
            values = torch.tensor([one for row in rows for one in row], dtype=torch.int64)
        self.values: Tensor = values.to(device)

    def take(self, rows: Tensor) -> Tensor:
        """The rows numbered `rows` (int64, on the CPU): (batch, longest of them, ...), padded with 0 on the right."""
        lengths = self.lengths[rows]
        columns = torch.arange(int(lengths.max()))
        inside = columns < lengths[:, None]
        places = torch.where(inside, self.starts[rows][:, None] + columns, 0).to(self.values.device, non_blocking=True)
        taken = self.values[places]
        outside = ~inside.to(taken.device, non_blocking=True)
        return taken.masked_fill_(outside.view(*outside.shape, *(1,) * (taken.dim() - 2)), PAD)

    def join(self, rows: Tensor, first: int = 0, without: int = 0) -> tuple[Tensor, Packing]:
        """The rows numbered `rows` end to end: (1, total, ...), and where they lie.

        Of each, what begins at symbol `first` and is `without` symbols shorter than the row.
        """
        lengths = self.lengths[rows] - without
        columns = torch.arange(int(lengths.max()))
        # The places are packed on the CPU, where their number is known without waiting for a GPU.
        places, packing = pack(self.starts[rows][:, None] + first + columns, lengths)
        device = self.values.device
        places, borders, positions = (
            one.to(device, non_blocking=True) for one in (places, packing.cu_seqlens, packing.positions)
        )
        return self.values[places], Packing(borders, positions, packing.longest)


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
        self.src_lengths, self.tgt_lengths = self.src.lengths, self.tgt.lengths - int(shifted)
        if int(self.src_lengths.min()) == 0:
            raise ValueError(f"source {self.src_lengths.argmin().item()} is empty, at least 1 symbol is needed")
        # A label may be padding too, where none is to be learnt.
        row = torch.repeat_interleave(self.tgt.lengths)
        counted = (self.tgt.values != PAD).long().cpu()
        self.counts = torch.zeros(len(self.tgt.lengths), dtype=torch.int64).index_add_(0, row, counted) - int(shifted)
        self.device = self.src.values.device

    def __len__(self) -> int:
        return len(self.src_lengths)

    def at(self, epoch: int) -> Examples:
        """Those of `epoch`: the same in all of them."""
        return self

    def batch(self, rows: Tensor) -> Batch:
        """The pairs numbered `rows` (int64, on the CPU), cut to the longest of them."""
        src_lengths, tgt_lengths = self.src_lengths[rows], self.tgt_lengths[rows]
        tgt, tokens = self.tgt.take(rows), self.tokens(rows)
        return Batch(
            src=self.src.take(rows),
            src_lengths=src_lengths.to(self.device, non_blocking=True),
            tgt=tgt[:, :-1] if self.shifted else tgt,
            targets=tgt[:, 1:] if self.shifted else tgt,
            tgt_lengths=tgt_lengths.to(self.device, non_blocking=True),
            tokens=tokens,
            all_tokens=tokens,
        )

    def packed(self, rows: Tensor) -> Batch:
        """The same, packed."""
        src, src_lengths = self.src.join(rows)
        tgt, tgt_lengths = self.tgt.join(rows, 0, int(self.shifted))
        targets = self.tgt.join(rows, 1, 1)[0] if self.shifted else tgt
        tokens = self.tokens(rows)
        return Batch(src, src_lengths, tgt, targets, tgt_lengths, tokens, tokens)

    def tokens(self, rows: Tensor) -> int:
        """The number of targets of the pairs numbered `rows`, without those that are padding."""
        return int(self.counts[rows].sum())


class Batches:
    """An endless iterator of batches whose position can be stored and restored.

    `batch_size` pairs make a batch or, where `batch_tokens` is given, as many as that number of symbols allows (of
    sources and targets, with the padding of a padded batch), at least one. Of every batch it gives the share of this
    rank of `world`, so that all ranks together train on the batches of one process.

    Raises:
        ValueError: `batch_size` or `batch_tokens` is below 1.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        batch_tokens: int | None = None,
        packed: bool = False,
        world: World = ALONE,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.batch_tokens, self.packed, self.world = batch_tokens, packed, world
        if batch_tokens is not None:
            symbols = examples.src_lengths + examples.tgt_lengths
            self.batch_size = max(1, int(batch_tokens / float(symbols.double().mean())))  # about
        self.epoch = self.index = 0
        self._order: list[Tensor] | None = None

    def __len__(self) -> int:
        """Batches in this epoch; the last one may be short."""
        return len(self._rows())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._share(self._rows()[self.index])
        self.index += 1
        if self.index == len(self):
            self.epoch, self.index, self._order = self.epoch + 1, 0, None
        return batch

    def _rows(self) -> list[Tensor]:
        if self._order is None:
            self._order = self.order(self.epoch)
        return self._order

    def _share(self, rows: Tensor) -> Batch:
        make = self.examples.packed if self.packed else self.examples.batch
        mine = self.world.share(rows)
        if len(mine):
            return dataclasses.replace(make(mine), all_tokens=self.examples.tokens(rows))
        # Fewer pairs than ranks: this one takes part in every exchange of its model, with targets that are all padding.
        idle = make(rows[:1])
        targets = torch.zeros_like(idle.targets)
        return dataclasses.replace(idle, targets=targets, tokens=0, all_tokens=self.examples.tokens(rows))

    def order(self, epoch: int) -> list[Tensor]:
        """The rows of every batch of `epoch`, in order; `examples` are that epoch's from then on."""
        self.examples = self.examples.at(epoch)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        rows = torch.randperm(len(self.examples), generator=generator)
        chunk = torch.arange(len(rows)) // (CHUNK_BATCHES * self.batch_size)
        key = (chunk << 32) + self.examples.src_lengths[rows].long() * 65536 + self.examples.tgt_lengths[rows]
        batches = self._split(rows[torch.argsort(key, stable=True)])
        return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]

    def _split(self, rows: Tensor) -> Sequence[Tensor]:
        if self.batch_tokens is None:
            return rows.split(self.batch_size)
        sizes, src, tgt = [0], 0, 0  # of the batch that is being filled: pairs, symbols (packed) or longest (padded)
        lengths = torch.stack([self.examples.src_lengths[rows], self.examples.tgt_lengths[rows]], 1)
        for one_src, one_tgt in lengths.tolist():
            both = (src + one_src, tgt + one_tgt) if self.packed else (max(src, one_src), max(tgt, one_tgt))
            if sizes[-1] and sum(both) * (1 if self.packed else sizes[-1] + 1) > self.batch_tokens:
                sizes.append(0)
                both = (one_src, one_tgt)
            sizes[-1] += 1
            src, tgt = both
        return rows.split(sizes)

    def position(self) -> dict[str, int]:
        """What `restore` needs to go on with the next batch."""
        return {"epoch": self.epoch, "index": self.index}

    def restore(self, position: dict[str, int]) -> None:
        """Continues at a stored position.

        Raises:
            ValueError: it is outside an epoch of this data, so data or batch size differ.
        """
        order = self.order(position["epoch"])
        if not 0 <= position["index"] < len(order):
            raise ValueError(f"batch {position['index']} of an epoch of {len(order)}: the data or batch size differ")
        self.epoch, self.index, self._order = position["epoch"], position["index"], order


def mixed_seed(*words: int | str) -> int:
    """A seed that depends on all of them.

    torch's generator on the CPU uses the low 32 bits of a seed alone, so all must be mixed into those.
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, words)).encode()).digest()[:4], "little")
