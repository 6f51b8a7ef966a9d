"""The CUDA C++ feed-forward network: on a Hopper GPU where there is one, else emulated on a CPU."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

import undivided
from emulated import emulated
from kernel_backend import CUDA as CUDA_RUNS
from undivided import BackendRefused, reference
from undivided.dispatch import FeedForwardCall
from undivided.ops.feed_forward_table import CUDA, FEED_FORWARD
from undivided.rules import OF_THE_MACHINE
from undivided.testing import FEED_FORWARD_CASES, FeedForwardCase, check, compare, honest, poison

pytest.importorskip("undivided._C", reason="the launcher passes addresses to the compiled extension")
DEVICE = "cuda" if CUDA_RUNS else "cpu"
DTYPES = [torch.bfloat16, torch.float16]
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
NAMES = ("x", "w_in", "b_in", "w_out", "b_out", "w_gate")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The emulated extension in place of the real one, and a table that lets tensors on a CPU through."""
    if CUDA_RUNS:
        yield None
        return
    launcher = importlib.import_module("undivided.cuda.feed_forward")
    module = emulated()
    monkeypatch.setattr(launcher, "_C", module)
    monkeypatch.setattr(launcher, "stream_of", lambda device: 0)
    row = replace(CUDA, rules=tuple(rule for rule in CUDA.rules if rule not in OF_THE_MACHINE))
    monkeypatch.setattr(importlib.import_module("undivided.ops.feed_forward"), "FEED_FORWARD", (row, *FEED_FORWARD[1:]))
    module.set_seed(0)
    module.set_multiprocessors(3)
    yield module


def set_seed(kernels, seed: int) -> None:
    """Of the emulator: with 0 everything happens at once, else late."""
    if kernels is not None:
        kernels.set_seed(seed)


def failures(case: FeedForwardCase, dtype: torch.dtype) -> list:
    with poison():
        verdicts = compare.feed_forward(case, dtype, "cuda", DEVICE)
    return [verdict for verdict in verdicts if not verdict.ok]


def inputs(gated=True, rows=70, d_model=24, d_ff=80, dtype=torch.bfloat16) -> dict:
    """Arguments of `feed_forward` by name, each requiring a gradient."""
    generator = torch.Generator().manual_seed(5)
    shapes = dict(x=(rows, d_model), w_in=(d_ff, d_model), b_in=(d_ff,), w_out=(d_model, d_ff), b_out=(d_model,))
    shapes |= dict(w_gate=(d_ff, d_model)) if gated else {}
    drawn = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}
    return {name: value.to(DEVICE, dtype).requires_grad_() for name, value in drawn.items()}


def gradients(values: dict, activation: str = "gelu") -> dict:
    """out and the gradient of every argument that requires one, by name."""
    out = undivided.feed_forward(**values, activation=activation, backend="cuda")
    wanted = [name for name in NAMES if name in values and values[name].requires_grad]
    found = torch.autograd.grad(out.float().square().sum(), [values[name] for name in wanted])
    return {"out": out.detach(), **dict(zip(wanted, found, strict=True))}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def even(size: int) -> int:
    return -(-size // 8) * 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEED_FORWARD_CASES, ids=lambda case: case.name)
def test_the_case_table(case, dtype):
    """With sizes that are multiples of 8."""
    assert not failures(replace(case, d_model=even(case.d_model), d_ff=even(case.d_ff)), dtype)


# Tiles are 128 rows by 256 columns, gated forward by 128; a step is 64 deep, and three are loaded at a time.
TILES = [
    FeedForwardCase("one tile", 128, 64, 256, "gelu"),
    FeedForwardCase("half a tile", 64, 72, 264, "silu"),  # the second warpgroup has nothing; a chunk in a second tile
    FeedForwardCase("steps", 65, 520, 40, "relu"),  # nine of them, the last one ragged
    FeedForwardCase("tiles", 300, 136, 600, "gelu"),  # nine of them by three multiprocessors
    FeedForwardCase("no bias", 130, 200, 304, "gelu_tanh", biases=False),
    FeedForwardCase("groups of tiles", 17 * 128 + 1, 8, 264, "gelu"),
]


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("case", TILES, ids=lambda case: case.name)
def test_across_tiles(case, gated, kernels):
    set_seed(kernels, 1 + gated)
    assert not failures(replace(case, gated=gated), DTYPES[(TILES.index(case) + gated) % 2])


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, gated, kernels):
    for seed, dtype in enumerate(DTYPES):
        set_seed(kernels, seed)
        assert not failures(FeedForwardCase("", 72, 40, 136, activation, gated=gated), dtype)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_bits_do_not_depend_on_the_order_of_things(gated, kernels):
    values = inputs(gated, rows=200, d_model=136, d_ff=328)
    first = gradients(values)
    for seed in range(1, 7):
        if kernels is not None:
            kernels.set_seed(seed)
            kernels.set_multiprocessors(seed)
        assert equal(gradients(values), first)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_without_gradients_the_result_is_the_same_and_nothing_is_kept(gated):
    from undivided.cuda.feed_forward import feed_forward_forward

    values = inputs(gated)
    trained = undivided.feed_forward(**values, activation="silu", backend="cuda")
    with torch.no_grad(), poison():
        rest = [values[name] for name in NAMES[:5]]
        out, h, g = feed_forward_forward(*rest, "silu", values.get("w_gate"), save=False)
    assert torch.equal(out, trained) and h is None and g is None


def test_any_strides():
    """Weights that are transposed views, x with wide rows and at odd addresses, a bias in steps, x of equal rows."""
    values = inputs()
    expected = gradients(values)
    views = {name: t.detach().T.contiguous().T if name[0] == "w" else t.detach() for name, t in values.items()}
    for first, width in ((8, 104), (7, 104), (8, 101)):
        wide = torch.full((70, width), torch.nan, dtype=torch.bfloat16, device=DEVICE)
        wide[:, first : first + 24] = values["x"].detach()
        views["x"] = wide[:, first : first + 24]
        views["b_in"] = values["b_in"].detach().repeat_interleave(2)[::2]
        got = gradients({name: view.requires_grad_() for name, view in views.items()})
        for name in expected:  # the library may sum in another order for other strides
            torch.testing.assert_close(got[name], expected[name], rtol=2e-2, atol=1e-1)
        assert torch.equal(got["b_in"], expected["b_in"])
    one = values["x"].detach()[:1]
    xs = (one.expand(70, 24), one.repeat(70, 1))
    assert torch.equal(*(undivided.feed_forward(**{**values, "x": x}, backend="cuda") for x in xs))


FROZEN = [
    ("x",),
    ("w_in", "w_out", "w_gate"),
    ("x", "w_in", "b_in", "w_gate"),
    ("x", "w_in", "b_in", "w_out", "w_gate"),  # only the last bias
    ("w_out", "b_in"),
]


@pytest.mark.parametrize("frozen", FROZEN, ids="-".join)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_frozen_inputs_change_no_other_gradient(frozen, gated):
    values = inputs(gated)
    every = gradients(values)
    for name in set(frozen) & set(values):
        values[name].requires_grad_(False)
    assert equal(gradients(values), {name: value for name, value in every.items() if name not in frozen})


def one_by_one(numbers: list, dtype: torch.dtype, gated: bool) -> dict:
    """A network of one hidden element that counts, h = the number, with a gate of 2: out[:, 0] = act(h) [2]."""
    x = torch.zeros(len(numbers), 8, dtype=dtype, device=DEVICE)
    x[:, 0], x[:, 1] = torch.tensor(numbers, dtype=dtype), 2.0
    first, second = torch.zeros(2, 8, 8, dtype=dtype, device=DEVICE)
    first[0, 0], second[0, 1] = 1.0, 1.0
    return dict(x=x, w_in=first, b_in=None, w_out=first, b_out=None) | (dict(w_gate=second) if gated else {})


def value_and_slope(function, values: dict, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = values["x"].detach().requires_grad_()
    out = function(**{**values, "x": x}, activation=activation)[:, 0]
    return out.detach(), torch.autograd.grad(out.sum(), x)[0][:, 0]


def cuda(**words) -> torch.Tensor:
    return undivided.feed_forward(**words, backend="cuda")


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_any_size(activation, dtype, gated):
    """Where the activation still bends, within the budget, number by number; far out, exactly its limit."""
    bent = [-20.0, -8.0, -5.0, -3.0, -1.0, -0.01, 0.0, 0.01, 0.75, 2.0, 5.0, 20.0]
    values = one_by_one(bent, dtype, gated)
    wide = {name: value if value is None else value.double() for name, value in values.items()}
    triples = zip(
        value_and_slope(cuda, values, activation),
        value_and_slope(reference.feed_forward, wide, activation),
        value_and_slope(honest.feed_forward, values, activation),
        strict=True,
    )
    for ours, exact, plain in triples:
        rows = zip(bent, ours, exact, plain, strict=True)
        verdicts = [check(str(number), *row, scale=2 * max(abs(number), 0.01)) for number, *row in rows]
        assert not [verdict for verdict in verdicts if not verdict.ok]

    largest = 3e4 if dtype == torch.float16 else 1e38
    far = [-largest, -1e4, -200.0, 200.0, 1e4, largest]
    values = one_by_one(far, dtype, gated)
    value, slope = value_and_slope(cuda, values, activation)
    positive = torch.tensor(far, device=DEVICE) > 0
    assert torch.equal(value, torch.where(positive, values["x"][:, 0], 0) * (2 if gated else 1))
    assert torch.equal(slope, positive.to(dtype) * (2 if gated else 1))


def test_a_nan_stays_in_its_row():
    values = inputs()
    clean = gradients(values)
    with torch.no_grad():
        values["x"][3, 2] = float("nan")
    dirty = gradients(values)
    others = torch.arange(70, device=DEVICE) != 3
    for name in ("out", "x"):
        assert torch.equal(dirty[name][others], clean[name][others]) and dirty[name][3].isnan().all()
    assert all(dirty[name].isnan().all() for name in ("w_in", "b_in", "w_gate", "w_out"))


def test_an_infinite_weight_does_not_reach_the_bias_through_rows_that_are_not_there():
    """70 rows leave a block of rows ragged: 0 times infinity in its last rows would turn the column's sum into NaN."""
    values = inputs(gated=False)
    with torch.no_grad():
        values["w_out"][0, 5] = float("inf")
        values["b_in"].fill_(50.0)  # every row of the hidden layer is positive
    out = undivided.feed_forward(**values, activation="relu", backend="cuda")
    (db_in,) = torch.autograd.grad(out, values["b_in"], torch.ones_like(out))
    assert db_in[5] == torch.inf and db_in.isnan().sum() == 0


def test_it_is_refused_with_the_reasons():
    values = inputs()
    with pytest.raises(BackendRefused, match="dtype float32 is not one of bfloat16, float16; cast"):
        undivided.feed_forward(**{name: value.float() for name, value in values.items()}, backend="cuda")
    with pytest.raises(BackendRefused, match="d_model 24 and d_ff 84 are not both multiples of 8"):
        undivided.feed_forward(**inputs(d_ff=84), backend="cuda")


def test_it_stays_out_of_auto_until_it_has_run_on_a_gpu():
    lines = undivided.explain(FeedForwardCall("cuda", "bfloat16", 4096, 512, 2048)).splitlines()
    assert lines[-1] == "auto takes: reference"
    assert not CUDA.auto and "has not run on a GPU yet" in CUDA.note


@pytest.mark.parametrize(("down", "across"), [(1, 1), (16, 3), (17, 4), (40, 1), (33, 5)])
def test_every_tile_of_a_product_is_there_once(down, across):
    tiles = emulated().product_tiles(down, across)
    assert sorted(tiles) == [(m, n) for m in range(down) for n in range(across)]
    groups = [m // 16 for m, _ in tiles]
    assert groups == sorted(groups)  # one group of rows after the other
