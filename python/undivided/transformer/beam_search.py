"""Beam search (Wu et al. 2016, section 7), with the rules of the transformers library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .decoding import Decoding
from .symbols import SYMBOLS, Symbols

# (ids int64 (rows, n) so far, the first ones included; scores (rows, vocabulary)) -> scores
Adjust = Callable[[Tensor, Tensor], Tensor]


class Finished:
    """The best hypotheses that have ended, `beams` a row: scores (batch, beams) in falling order, ids, lengths."""

    def __init__(self, batch: int, beams: int, max_length: int, pad: int, like: Tensor) -> None:
        self.scores = like.new_full((batch, beams), -torch.inf)
        self.ids = torch.full((batch, beams, max_length), pad, device=like.device)
        self.lengths = self.ids.new_zeros(batch, beams)

    def add(self, scores: Tensor, ids: Tensor) -> None:
        """scores (batch, n), -inf for what does not count; ids (batch, n, length)."""
        length, rest = ids.shape[2], self.ids.shape[2] - ids.shape[2]
        padded = torch.cat([ids, self.ids[:, :1, length:].expand(-1, ids.shape[1], rest)], 2)
        self.scores, best = torch.cat([self.scores, scores], 1).topk(self.scores.shape[1])
        self.ids = take(torch.cat([self.ids, padded], 1), best)
        self.lengths = torch.cat([self.lengths, torch.full_like(ids[..., 0], length)], 1).gather(1, best)

    def best(self) -> Tensor:
        """Ids (batch, n) of the best hypothesis of each row."""
        return self.ids[:, 0, : int(self.lengths[:, 0].max())]


def take(ids: Tensor, which: Tensor) -> Tensor:
    """Hypotheses `which` (batch, n) of ids (batch, beams, length)."""
    return ids.gather(1, which[..., None].expand(-1, -1, ids.shape[2]))


@torch.no_grad()
def beam_search(
    decoding: Decoding,
    first: Tensor,
    max_length: int,
    beams: int,
    length_penalty: float = 1.0,
    symbols: Symbols = SYMBOLS,
    adjust: Adjust | None = None,
) -> Tensor:
    """The best of `beams` hypotheses a row, by log-probability / length ** length_penalty.

    `beams` hypotheses go on at every step; those that end, or reach `max_length`, are set aside. A row is done when it
    has `beams` of these and its best running hypothesis, ended here, would be behind them all.
    """
    batch, device = decoding.batch, decoding.device
    logits = decoding.step(first)
    decoding.select(torch.arange(batch, device=device).repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, 0)
    finished = Finished(batch, beams, max_length, symbols.pad, logits)
    # At first all beams are the same, so only one of them may go on.
    running = logits.new_full((batch, beams), -torch.inf)
    running[:, 0] = 0.0
    ids = torch.empty((batch, beams, 0), dtype=torch.int64, device=device)
    going = torch.ones((batch, 1), dtype=torch.bool, device=device)
    for length in range(1, max_length + 1):
        gains = logits.log_softmax(-1)
        if adjust is not None:
            gains = adjust(torch.cat([first.repeat_interleave(beams, 0), ids.flatten(0, 1)], 1), gains)
        total = (running[..., None] + gains.unflatten(0, (batch, beams))).flatten(1)
        # So many that `beams` of them go on even when as many end.
        scores, best = total.topk(min(2 * beams, total.shape[1]))
        row, symbol = best // gains.shape[1], best % gains.shape[1]
        longer = torch.cat([take(ids, row), symbol[..., None]], 2)
        ended = (symbol == symbols.end) | (length == max_length)
        counts = ended & going & (torch.arange(ended.shape[1], device=device) < beams)
        finished.add(torch.where(counts, scores / length**length_penalty, -torch.inf), longer)
        running, kept = torch.where(ended, -torch.inf, scores).topk(beams)
        going = going & (running[:, :1] / length**length_penalty > finished.scores[:, -1:])
        if length == max_length or not bool(going.any()):
            break
        ids = take(longer, kept)
        rows = row.gather(1, kept) + torch.arange(batch, device=device)[:, None] * beams
        decoding.select(rows.flatten(), same_sources=True)
        logits = decoding.step(ids[:, :, -1].flatten()[:, None])
    return finished.best()
