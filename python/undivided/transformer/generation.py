"""Searching for the output: greedy, beam search, sampling. All of them decode with caches, a symbol a step."""

from __future__ import annotations

import torch
from torch import Tensor

from .decoding import Decoding

# The symbols that every vocabulary of the tasks starts with.
PAD, BEGIN, END = 0, 1, 2


@torch.no_grad()
def generate(
    decoding: Decoding,
    max_length: int,
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    prompt: Tensor | None = None,
) -> Tensor:
    """Ids int64 (batch, n), n <= max_length, without begin; after a row's end comes padding.

    Args:
        beams: more than 1 searches that many hypotheses; its score is divided by length ** length_penalty
            (Wu et al. 2016, section 7).
        temperature: given, or with top_k or top_p: samples from softmax(logits / temperature).
        top_k: only among the k likeliest. top_p: only among the likeliest that together have mass p (Holtzman 2020).
        prompt: int64 (batch, n) to start from instead of begin.

    Raises:
        ValueError: a number is out of range, or beams are asked for together with sampling.
    """
    sampling = any(value is not None for value in (temperature, top_k, top_p))
    if max_length < 1:
        raise ValueError(f"max_length={max_length} must be at least 1")
    if beams < 1 or (beams > 1 and sampling):
        raise ValueError(f"beams={beams} must be at least 1, and 1 with temperature, top_k or top_p")
    first = prompt
    if first is None:
        first = torch.full((decoding.batch, 1), BEGIN, dtype=torch.int64, device=decoding.device)
    if beams > 1:
        return beam_search(decoding, first, max_length, beams, length_penalty)
    if sampling:
        return sample(decoding, first, max_length, 1.0 if temperature is None else temperature, top_k, top_p, generator)
    return greedy_search(decoding, first, max_length)


@torch.no_grad()
def greedy_search(decoding: Decoding, first: Tensor, max_length: int) -> Tensor:
    """The likeliest symbol at every step."""
    return _one_by_one(decoding, first, max_length, lambda logits: logits.argmax(-1))


@torch.no_grad()
def sample(
    decoding: Decoding,
    first: Tensor,
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A symbol drawn at every step. Raises: ValueError for a number out of range."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; leave it out for the likeliest symbol")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")

    def draw(logits: Tensor) -> Tensor:
        probabilities = truncated(logits / temperature, top_k, top_p).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return _one_by_one(decoding, first, max_length, draw)


def truncated(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """logits (batch, vocabulary) with -inf at what top_k and top_p leave out."""
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        mass = ordered.softmax(-1)
        # What stands before a symbol already has the mass: it is not needed. The first one always stays.
        beyond = (mass.cumsum(-1) - mass) >= top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits


def _one_by_one(decoding: Decoding, first: Tensor, max_length: int, choose) -> Tensor:  # type: ignore[no-untyped-def]
    newest, out = first, []
    done = torch.zeros(first.shape[0], dtype=torch.bool, device=first.device)
    for _ in range(max_length):
        chosen = choose(decoding.step(newest)).masked_fill(done, PAD)
        out.append(chosen)
        done |= chosen == END
        if bool(done.all()):
            break
        newest = chosen[:, None]
    return torch.stack(out, 1)


@torch.no_grad()
def beam_search(decoding: Decoding, first: Tensor, max_length: int, beams: int, length_penalty: float = 1.0) -> Tensor:
    """The best of `beams` hypotheses a row, by log-probability / length ** length_penalty."""
    batch, device = decoding.batch, decoding.device
    logits = decoding.step(first)
    vocab = logits.shape[-1]
    decoding.select(torch.arange(batch, device=device).repeat_interleave(beams))
    # (batch, beams): at first all beams are the same, so only one of them may go on.
    scores = torch.full((batch, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0
    logits = logits.repeat_interleave(beams, 0)
    ids = torch.zeros((batch, beams, 0), dtype=torch.int64, device=device)
    done = torch.zeros((batch, beams), dtype=torch.bool, device=device)
    lengths = torch.zeros((batch, beams), device=device)
    only_pad = torch.full((vocab,), -torch.inf, device=device)
    only_pad[PAD] = 0.0
    for step in range(max_length):
        gains = logits.log_softmax(-1).view(batch, beams, vocab)
        gains = torch.where(done[..., None], only_pad, gains)  # a finished hypothesis goes on unchanged
        total = scores[..., None] + gains
        longer = (lengths + (~done).float()).clamp_min(1)
        ranked = (total / longer[..., None] ** length_penalty).flatten(1)
        _, best = ranked.topk(beams, -1)
        row, symbol = best // vocab, best % vocab
        scores = total.flatten(1).gather(1, best)
        lengths = longer.gather(1, row)
        done = done.gather(1, row) | (symbol == END)
        ids = torch.cat([ids.gather(1, row[..., None].expand(-1, -1, step)), symbol[..., None]], -1)
        if bool(done.all()) or step + 1 == max_length:
            break
        decoding.select((row + torch.arange(batch, device=device)[:, None] * beams).flatten())
        logits = decoding.step(symbol.flatten()[:, None])
    best = (scores / lengths.clamp_min(1) ** length_penalty).argmax(-1)
    return ids[torch.arange(batch, device=device), best]
