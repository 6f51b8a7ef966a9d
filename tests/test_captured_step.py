"""Decoding with a step that is recorded once and replayed, against decoding without.

On a CPU by an emulation of the recording that has its rules (`graph_on_cpu.py`), on a GPU by a CUDA graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from graph_on_cpu import Recorder
from kernel_backend import needs_triton
from undivided.benchmarks import generation
from undivided.benchmarks.implementations import on_backend
from undivided.nn import POSITIONS, Cache
from undivided.transformer import CausalLM, Config, Decoding, Transformer, captured
from undivided.transformer.generation import generate
from undivided.transformer.huggingface.bart import M2M100, Bart, Marian
from undivided.transformer.huggingface.t5 import T5
from undivided.transformer.symbols import END

VOCAB, STEPS = 17, 14
SEARCHES = {
    "greedy": {},
    "beams": {"beams": 3},
    "sampling": {"temperature": 2.0, "top_k": 5},
    "prompt": {"prompt": torch.tensor([[1, 5, 9], [1, 4, 4], [1, 16, 3]])},
    "prompt and beams": {"beams": 3, "prompt": torch.tensor([[1, 5, 9], [1, 4, 4], [1, 16, 3]])},
    # more symbols than a step of decoding may have (undivided.nn.attention.FEW)
    "long prompt": {"prompt": torch.arange(3, 15).expand(3, -1)},
}


def small(**changes) -> Config:
    return Config(**{"src_vocab": VOCAB, "tgt_vocab": VOCAB, "d_model": 32, "nheads": 2, "d_ff": 48, **changes})


def model(**changes) -> Transformer:
    torch.manual_seed(1)
    return Transformer(small(**changes)).eval()


def batch(device: str = "cpu") -> tuple[Tensor, Tensor]:
    src = torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
    return src.to(device), torch.tensor([7, 3, 5], dtype=torch.int32, device=device)


def never_ends(ids: Tensor, scores: Tensor) -> Tensor:
    """So that every search takes all of its steps."""
    return scores.index_fill(1, torch.tensor([END], device=scores.device), -torch.inf)


def search(made: Transformer, device: str = "cpu", cuda_graph: bool = False, **words) -> tuple[Tensor, Tensor]:
    """(ids, the logits of all steps but the first, (steps, rows, vocabulary))."""
    words = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in words.items()}
    prompt = words.get("prompt")
    decoding = made.start(*batch(device), STEPS + (1 if prompt is None else prompt.shape[1]), cuda_graph=cuda_graph)
    step, logits = decoding.step, []

    def kept(ids: Tensor) -> Tensor:
        logits.append(step(ids))
        return logits[-1]

    decoding.step = kept
    generator = torch.Generator(device).manual_seed(0)
    ids = generate(decoding, STEPS, adjust=never_ends, generator=generator, **words)
    assert ids.shape == (3, STEPS) and len(logits) == STEPS
    return ids, torch.stack(logits[1:])  # all at last: a step must not write over those before it


@pytest.fixture
def recorder(monkeypatch) -> Iterator[Recorder]:
    made = Recorder()
    monkeypatch.setitem(captured.RECORDERS, "cpu", made)
    yield made


@pytest.mark.parametrize("words", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_replayed_steps_are_the_steps(recorder, positions, words):
    made = model(positions=positions)
    ids, logits = search(made, **words)
    assert recorder.recordings == 0
    replayed_ids, replayed_logits = search(made, cuda_graph=True, **words)
    assert torch.equal(replayed_ids, ids)
    assert torch.equal(replayed_logits, logits)
    # One step reads the prompt, and one is run before it is recorded.
    assert (recorder.recordings, recorder.replays) == (1, STEPS - 2)


@pytest.mark.parametrize("changes", [{"norm": "post-rms"}, {"activation": "geglu", "shared_embedding": True}])
def test_other_variants(recorder, changes):
    made = model(**changes)
    for expected, got in zip(search(made), search(made, cuda_graph=True), strict=True):
        assert torch.equal(got, expected)
    assert recorder.replays == STEPS - 2


FAMILIES = {
    "bart": Bart(VOCAB, VOCAB, 32, nheads=2, d_ff=48, pad=0, begin=1, end=2, longest=40),
    "marian": Marian(VOCAB, VOCAB, 32, nheads=2, d_ff=48, pad=0, begin=1, end=2),
    "m2m100": M2M100(VOCAB, VOCAB, 32, nheads=2, d_ff=48, pad=0, begin=1, end=2),
    "t5": T5(VOCAB, VOCAB, 32, nheads=2, d_ff=48, head_dim=16, pad=0, begin=1, end=2),
}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_families_of_published_models(recorder, config):
    torch.manual_seed(1)
    made = Transformer(config).eval()
    for expected, got in zip(search(made), search(made, cuda_graph=True), strict=True):
        assert torch.equal(got, expected)
    assert recorder.replays == STEPS - 2


def test_under_autocast(recorder):
    made = model()
    with torch.autocast("cpu", torch.bfloat16):
        for expected, got in zip(search(made), search(made, cuda_graph=True), strict=True):
            assert torch.equal(got, expected)
    assert recorder.replays == STEPS - 2


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_triton), "reference"])
def test_other_backends(recorder, backend):
    """What a GPU runs; Triton's kernels in the interpreter, which is slow: a layer and a few steps."""
    made = model(positions="relative", encoder_layers=1, decoder_layers=1)
    with on_backend(backend).open():
        expected, got = (feed(made.start(*batch(), 6, cuda_graph=graph), [1] * 5) for graph in (False, True))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert recorder.replays == 3


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_language_model(recorder, positions):
    torch.manual_seed(1)
    made = CausalLM(small(positions=positions)).eval()
    prompt = torch.tensor([[1, 5, 9], [1, 4, 4]])
    ids = made.generate(prompt, STEPS, adjust=never_ends)
    assert torch.equal(made.generate(prompt, STEPS, adjust=never_ends, cuda_graph=True), ids)
    assert recorder.replays == STEPS - 2


def test_generate_takes_the_word(recorder):
    made = model()
    for words in SEARCHES.values():
        if "temperature" not in words:
            ids = made.generate(*batch(), STEPS, adjust=never_ends, **words)
            assert torch.equal(made.generate(*batch(), STEPS, adjust=never_ends, cuda_graph=True, **words), ids)
    assert recorder.recordings == len(SEARCHES) - 1


def feed(decoding: Decoding, plan: list[Tensor | int]) -> list[Tensor]:
    """Logits of steps of so many symbols each, the same ones at every call; a tensor selects rows in between."""
    generator, found = torch.Generator().manual_seed(0), []
    for part in plan:
        if isinstance(part, Tensor):
            decoding.select(part)
        else:
            found.append(decoding.step(torch.randint(3, VOCAB, (decoding.batch, part), generator=generator)))
    return found


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("plan", "recordings", "replays"),
    [
        ([1, 1, 1, 1, torch.tensor([2, 0]), 1, 1, 1], 2, 2 + 2),  # fewer rows: another recording
        ([1, torch.arange(3).repeat_interleave(2), 1, 1, 1, torch.tensor([5, 5, 0, 1, 2, 1]), 1, 1], 1, 4),
        ([1, torch.tensor([2, 1, 0]), 1, torch.tensor([0, 2, 1]), 1, torch.tensor([1, 1, 1]), 1, 1], 1, 3),
        ([1, 1, 1, 1, 2, 1, 1, 9, 1], 1, 2 + 2 + 1),  # several symbols in between are not replayed
        ([2, 2, 2, 1, 1, 1], 1, 2),  # and not recorded
    ],
)
def test_rows_and_symbols_may_change(recorder, positions, plan, recordings, replays):
    made, (src, lengths) = model(positions=positions), batch()
    before = lengths.clone()
    expected = feed(made.start(src, lengths, 20), plan)
    got = feed(made.start(src, lengths, 20, cuda_graph=True), plan)
    assert all(map(torch.equal, got, expected))
    assert (recorder.recordings, recorder.replays) == (recordings, replays)
    assert torch.equal(lengths, before)  # they are the caller's


@pytest.mark.parametrize("longest", [2, 3, 6])
def test_no_room_is_named_before_anything_is_written(recorder, longest):
    """At the step that would be recorded, at the first that would be replayed, and later."""
    decoding = model().start(*batch(), longest, cuda_graph=True)
    feed(decoding, [1] * longest)
    held = [cache.lengths.clone() for cache in decoding.caches]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"the cache holds {longest} tokens, {longest + 1} were given; make it"):
            decoding.step(torch.full((3, 1), 4))
    assert recorder.replays == max(0, longest - 2)
    assert all(torch.equal(cache.lengths, before) for cache, before in zip(decoding.caches, held, strict=True))


def test_what_a_replay_reads_stays_though_its_table_grows(recorder):
    made = model(positions="sinusoidal")
    expected = feed(made.start(*batch(), 20), [1] * 8)
    decoding = made.start(*batch(), 20, cuda_graph=True)
    got = feed(decoding, [1] * 4)
    table = made.decoder.positions.table
    made.start(*batch(), 1000, cuda_graph=True)
    assert made.decoder.positions.table is not table
    assert table.data_ptr() in [tensor.data_ptr() for tensor in decoding._captured.held]
    assert all(map(torch.equal, got, expected[:4]))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_the_emulation_sees_a_number_that_is_frozen(recorder, monkeypatch, positions):
    """A step that takes its place from Python stands where the recorded one stood."""
    made = model(positions=positions)
    _, expected = search(made)
    monkeypatch.setattr(Cache, "start", lambda self, count: self.length)
    _, got = search(made, cuda_graph=True)
    assert torch.equal(got[:2], expected[:2])  # run as it is; recorded, and replayed at its own place
    assert (got[2] - expected[2]).abs().max() > 1e-3


def test_the_emulation_sees_a_tensor_that_is_replaced(recorder, monkeypatch):
    """A selection that makes other caches leaves the recorded step with those from before."""
    made, plan = model(), [1, 1, 1, torch.tensor([2, 1, 0]), 1]
    expected = feed(made.start(*batch(), 20), plan)

    def replaced(cache: Cache, rows: torch.Tensor) -> None:
        cache.keys, cache.values, cache.lengths = cache.keys[rows], cache.values[rows], cache.lengths[rows]

    monkeypatch.setattr(Cache, "select", replaced)
    got = feed(made.start(*batch(), 20, cuda_graph=True), plan)
    assert torch.equal(got[2], expected[2]) and (got[3] - expected[3]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "look",
    [
        lambda x: float(x[0, 0, 0]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.data_ptr(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).all()),
        lambda x: torch.tensor([1.0]),
    ],
)
def test_the_emulation_refuses_what_waits(recorder, monkeypatch, look):
    made = model()
    head = made.decoder.head.forward

    def forward(x: Tensor, table: Tensor) -> Tensor:
        look(x)
        return head(x, table)

    monkeypatch.setattr(made.decoder.head, "forward", forward)
    with pytest.raises(RuntimeError, match="is not permitted while a graph is recorded"):
        search(made, cuda_graph=True)


def test_what_cannot_be_recorded_is_named(recorder, monkeypatch):
    src, lengths = batch()
    with pytest.raises(ValueError, match=r"cannot record a model in training mode; call its eval\(\) first"):
        model().train().start(src, lengths, cuda_graph=True)
    with pytest.raises(ValueError, match="the sequence has 1025 positions, learned positions end at 1024"):
        model(positions="learned").start(src, lengths, 1025, cuda_graph=True)
    monkeypatch.delitem(captured.RECORDERS, "cpu")
    with pytest.raises(ValueError, match="cuda_graph=True cannot record on device cpu; allowed: cuda"):
        model().generate(src, lengths, cuda_graph=True)


def test_the_benchmark_has_it_on_a_gpu(recorder):
    names = [{one.name for one in generation.providers(device, ("auto",))} for device in ("cpu", "cuda")]
    assert names[1] - names[0] == {"undivided auto graph"}
    [provider] = [one for one in generation.providers("cuda", ("auto",)) if one.name == "undivided auto graph"]
    case = generation.Case(2, 6, 1, 16, 2, 32, "float32")
    [expected], [got] = (
        generation.build(way, case, "tokens", "cpu")() for way in (on_backend("auto"), provider.make(case, "cpu"))
    )
    assert torch.equal(got, expected) and recorder.replays == 4


def test_a_graph_casts_its_own_weights(monkeypatch):
    """What surrounds a recording, with a graph that does nothing: torch on a CPU has none."""
    given, replays, signature = [], [], inspect.signature(torch.cuda.graph)

    @contextmanager
    def graph(*values, **words):
        given.append(signature.bind(*values, **words))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: replays.append(1)))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(captured, "_stream", lambda device: f"stream of {device}")
    out = torch.ones(3)

    def run() -> Tensor:
        assert not torch.is_autocast_cache_enabled()
        return out

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_cache_enabled()
    replay = captured.record_graph(run)
    after = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_cache_enabled()
    assert before == after and len(given) == 1 and not replays
    assert given[0].arguments["stream"] == "stream of 0"
    assert replay() is out and replay() is out and len(replays) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("words", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_on_a_gpu(positions, words, backend):
    """A recording is many steps long; numbers are of other kernels where a product has another workspace."""
    made = model(positions=positions).cuda()
    with on_backend(backend).open():
        ids, logits = search(made, "cuda", **words)
        replayed_ids, replayed_logits = search(made, "cuda", cuda_graph=True, **words)
    assert torch.equal(replayed_ids, ids)
    torch.testing.assert_close(replayed_logits, logits, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_under_autocast():
    """The weights that autocast has cast are gone when its context ends, the graph is not."""
    made = model().cuda()
    src, lengths = batch("cuda")
    symbols = torch.randint(3, VOCAB, (12, 3, 1), generator=torch.Generator().manual_seed(0)).cuda()

    def steps(cuda_graph: bool) -> Tensor:
        found = []
        with torch.autocast("cuda", torch.bfloat16):
            decoding = made.start(src, lengths, 12, cuda_graph=cuda_graph)
        for ids in symbols:
            with torch.autocast("cuda", torch.bfloat16):
                found.append(decoding.step(ids))
            noise = [torch.full((512,), torch.nan, device="cuda") for _ in range(2000)]  # where they were
            del noise
        return torch.stack(found)

    torch.testing.assert_close(steps(True), steps(False), rtol=0, atol=0.1)
