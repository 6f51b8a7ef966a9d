"""Searching for the output: greedy, beam search, sampling. All of them decode with caches, a symbol a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .beam_search import Adjust, beam_search
from .decoding import Decoding
from .symbols import SYMBOLS, Symbols


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
    symbols: Symbols = SYMBOLS,
    adjust: Adjust | None = None,
) -> Tensor:
    """Ids int64 (batch, n), n <= max_length, without begin; after a row's end comes padding.

    Args:
        beams: more than 1 searches that many hypotheses; its score is divided by length ** length_penalty
            (Wu et al. 2016, section 7).
        temperature: given, or with top_k or top_p: samples from softmax(logits / temperature).
        top_k: only among the k likeliest. top_p: only among the likeliest that together have mass p (Holtzman 2020).
        prompt: int64 (batch, n) to start from instead of begin.
        symbols: the numbers of padding, begin and end.
        adjust: changes the scores of every step before they are searched, as a logits processor of the transformers
            library does: adjust(ids int64 (rows, n) so far with prompt or begin, scores (rows, vocabulary)) -> scores.
            They are logits; in a beam search log-probabilities, and (batch * beams) rows.

    Raises:
        ValueError: a number is out of range, beams are asked for together with sampling, or there is neither a prompt
            nor a begin symbol.
    """
    sampling = any(value is not None for value in (temperature, top_k, top_p))
    if max_length < 1:
        raise ValueError(f"max_length={max_length} must be at least 1")
    if beams < 1 or (beams > 1 and sampling):
        raise ValueError(f"beams={beams} must be at least 1, and 1 with temperature, top_k or top_p")
    first = prompt
    if first is None:
        if symbols.begin is None:
            raise ValueError("this model has no begin symbol: give the first ones, prompt=")
        first = torch.full((decoding.batch, 1), symbols.begin, dtype=torch.int64, device=decoding.device)
    if beams > 1:
        return beam_search(decoding, first, max_length, beams, length_penalty, symbols, adjust)
    if sampling:
        temperature = 1.0 if temperature is None else temperature
        return sample(decoding, first, max_length, temperature, top_k, top_p, generator, symbols, adjust)
    return greedy_search(decoding, first, max_length, symbols, adjust)


@torch.no_grad()
def greedy_search(
    decoding: Decoding,
    first: Tensor,
    max_length: int,
    symbols: Symbols = SYMBOLS,
    adjust: Adjust | None = None,
) -> Tensor:
    """The likeliest symbol at every step."""
    return _one_by_one(decoding, first, max_length, lambda logits: logits.argmax(-1), symbols, adjust)


@torch.no_grad()
def sample(
    decoding: Decoding,
    first: Tensor,
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    symbols: Symbols = SYMBOLS,
    adjust: Adjust | None = None,
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

    return _one_by_one(decoding, first, max_length, draw, symbols, adjust)


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


def _one_by_one(
    decoding: Decoding,
    first: Tensor,
    max_length: int,
    choose: Callable[[Tensor], Tensor],
    symbols: Symbols,
    adjust: Adjust | None,
) -> Tensor:
    newest, ids = first, first
    done = torch.zeros(first.shape[0], dtype=torch.bool, device=first.device)
    for _ in range(max_length):
        logits = decoding.step(newest)
        chosen = choose(logits if adjust is None else adjust(ids, logits)).masked_fill(done, symbols.pad)
        newest = chosen[:, None]
        ids = torch.cat([ids, newest], 1)
        done |= chosen == symbols.end
        if bool(done.all()):
            break
    return ids[:, first.shape[1] :]
