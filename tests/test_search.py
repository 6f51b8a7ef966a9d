"""Generation: greedy, by beams and by sampling, and what the rows of a decoding take with them."""

from __future__ import annotations

import pytest
import torch

from small_transformers import batch, model, small
from undivided.nn import POSITIONS
from undivided.nn.cache import Cache
from undivided.transformer import Transformer
from undivided.transformer.decoding import Decoding
from undivided.transformer.generation import generate, truncated
from undivided.transformer.symbols import END, PAD


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoding_may_start_with_several_symbols_and_change_its_rows(positions):
    """As a beam search does: rows repeated, reordered and dropped take their caches with them."""
    src, tgt, lengths = batch()
    made = model(positions=positions).double()
    full = made(src, tgt, lengths)
    decoding = made.start(src, lengths, tgt.shape[1])
    torch.testing.assert_close(decoding.step(tgt[:, :3]), full[:, 2], rtol=0, atol=1e-13)
    rows = torch.tensor([2, 0, 0])
    decoding.select(rows)
    torch.testing.assert_close(decoding.step(tgt[rows, 3:4]), full[rows, 3], rtol=0, atol=1e-13)
    decoding.select(torch.tensor([1]))
    torch.testing.assert_close(decoding.step(tgt[:1, 4:5]), full[:1, 4], rtol=0, atol=1e-13)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_beam_search_leaves_the_keys_of_the_sources_alone(monkeypatch, positions):
    """Its hypotheses change places within a source; what all rows select gives the same."""
    src, _, lengths = batch()
    made, selected = model(positions=positions).eval(), []
    select, of_cache = Decoding.select, Cache.select
    monkeypatch.setattr(Cache, "select", lambda self, rows: selected.append(self.of_source) or of_cache(self, rows))
    found = made.generate(src, lengths, max_length=9, beams=3)
    blocks = len(made.decoder.blocks)
    assert selected.count(True) == blocks and selected.count(False) > 2 * blocks
    monkeypatch.setattr(Decoding, "select", lambda self, rows, same_sources=False: select(self, rows))
    assert torch.equal(made.generate(src, lengths, max_length=9, beams=3), found)
    assert selected.count(True) > 2 * blocks


def test_greedy_takes_the_likeliest_symbol_of_a_full_pass():
    src, _, lengths = batch()
    made = model()
    ids = made.generate(src, lengths, max_length=8)
    for row in range(3):
        prefix = [1]
        for given in ids[row].tolist():
            wanted = made(src[row : row + 1], torch.tensor([prefix]), lengths[row : row + 1])[0, -1].argmax().item()
            assert given == wanted
            if given == END:
                break
            prefix.append(given)


def score(made: Transformer, src, lengths, ids) -> torch.Tensor:
    """Log-probability of each row's symbols up to its first end, divided by their number."""
    begin = torch.ones_like(ids[:, :1])
    logits = made(src, torch.cat([begin, ids[:, :-1]], 1), lengths).log_softmax(-1)
    seen = (ids == END).cumsum(1) - (ids == END).int() == 0
    gains = logits.gather(-1, ids[..., None])[..., 0].masked_fill(~seen, 0.0)
    return gains.sum(1) / seen.sum(1)


def test_wide_beam_search_finds_the_best_of_all_outputs():
    """Over three symbols and three steps every output can be scored; a beam as wide as all of them must find the best.

    The vocabulary is pad, begin, end and two symbols; pad and begin are possible symbols as well.
    """
    torch.manual_seed(3)
    made = Transformer(small(tgt_vocab=5)).eval()
    src, _, lengths = batch()
    ids = made.generate(src, lengths, max_length=3, beams=40)
    every = torch.cartesian_prod(*[torch.arange(5)] * 3)
    for row in range(3):
        count = len(every)
        scores = score(made, src[row : row + 1].expand(count, -1), lengths[row : row + 1].expand(count), every)
        padded = torch.nn.functional.pad(ids[row : row + 1], (0, 3 - ids.shape[1]))
        found = score(made, src[row : row + 1], lengths[row : row + 1], padded)
        assert found.item() == pytest.approx(scores.max().item(), abs=1e-5)


def test_one_beam_of_several_is_never_worse_than_greedy_on_average():
    src, _, lengths = batch()
    made = model()
    greedy = made.generate(src, lengths, max_length=6)
    beam = made.generate(src, lengths, max_length=6, beams=4)
    assert score(made, src, lengths, beam).mean() >= score(made, src, lengths, greedy).mean() - 1e-5


def test_sampling_keeps_to_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert truncated(logits, 2, None).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, None, 0.75).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, None, 0.01).isfinite().tolist() == [[True, False, False, False]]
    assert truncated(logits, None, 1.0).isfinite().all()


class Fixed:
    """A decoding whose next symbol always has the same logits, until its last step ends it."""

    def __init__(self, logits: list[float], batch: int) -> None:
        self.logits, self.batch, self.device = torch.tensor([logits]), batch, torch.device("cpu")

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(self.batch, -1)


@pytest.mark.parametrize(
    ("search", "kept"),
    [
        ({"temperature": 1.0}, [0, 3, 4, 5, 6]),
        ({"temperature": 0.5}, [0, 3, 4, 5, 6]),
        ({"temperature": 2.0, "top_k": 3}, [3, 4, 5]),
        ({"top_p": 0.6}, [3, 4]),
        ({"top_k": 3, "top_p": 0.99}, [3, 4, 5]),
    ],
)
def test_samples_have_the_frequencies_of_the_truncated_softmax(search, kept):
    logits = [0.0, -torch.inf, -torch.inf, 3.0, 2.5, 2.0, 1.0]
    count = 20000
    drawn = generate(Fixed(logits, count), 1, generator=torch.Generator().manual_seed(0), **search)
    weights = (torch.tensor(logits)[kept] / search.get("temperature", 1.0)).softmax(0)
    share = torch.stack([(drawn == symbol).float().mean() for symbol in kept])
    assert share.sum() == pytest.approx(1.0)  # nothing else was drawn
    assert ((share - weights).abs() <= 5 * (weights * (1 - weights) / count).sqrt()).all()


def test_sampling_follows_its_generator_and_temperature():
    src, _, lengths = batch()
    made = model()

    def drawn(seed: int, **search):
        return made.generate(src, lengths, max_length=8, generator=torch.Generator().manual_seed(seed), **search)

    assert torch.equal(drawn(1, temperature=1.0), drawn(1, temperature=1.0))
    assert any(drawn(0, temperature=3.0).tolist() != drawn(seed, temperature=3.0).tolist() for seed in range(1, 5))
    assert torch.equal(drawn(1, top_k=1), made.generate(src, lengths, max_length=8))


def test_after_its_end_a_row_is_padding():
    src, _, lengths = batch()
    made = model()
    ids = made.generate(src.repeat(40, 1), lengths.repeat(40), max_length=8, temperature=2.0)
    ended = (ids == END).any(1)
    assert ended.any()
    for row in ids[ended].tolist():
        assert set(row[row.index(END) + 1 :]) <= {PAD}


@pytest.mark.parametrize(
    ("search", "text"),
    [
        ({"beams": 0}, "beams=0 must be at least 1"),
        ({"beams": 2, "top_k": 3}, "beams=2 must be at least 1, and 1 with"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
    ],
)
def test_bad_searches_are_named(search, text):
    src, _, lengths = batch()
    with pytest.raises(ValueError, match=text):
        model().generate(src, lengths, **search)
