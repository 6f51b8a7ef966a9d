"""The Triton feed-forward in the interpreter (or on a GPU), with the activation fused into the product and not."""

import importlib.util
import multiprocessing

import pytest
import torch

import undivided
from undivided import reference
from undivided.testing import check, compare, honest, poison
from undivided.testing.cases import FEED_FORWARD_CASES, FeedForwardCase

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    # The interpreter computes with NumPy, which warns where a GPU is silent.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULE = "undivided.ops.triton_feed_forward"
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
NAMES = ("x", "w_in", "b_in", "w_out", "b_out", "w_gate")
# Four rows of tiles, which groups of three leave ragged, and three columns; no size is a multiple of a block.
LARGE = FeedForwardCase("several groups of tiles", 200, 40, 150, "silu", gated=True)


@pytest.fixture(params=[True, False], ids=["fused", "library"])
def path(request, monkeypatch):
    """Forces the choice that `plan.fuses` makes by size, and counts how often it was asked."""
    from undivided.kernels.feed_forward import plan

    asked = []
    monkeypatch.setattr(plan, "fuses", lambda *sizes: asked.append(sizes) or request.param)
    yield "fused" if request.param else "library"
    assert asked


def inputs(gated: bool = True, rows: int = 70, d_model: int = 24, d_ff: int = 80, dtype=torch.float32) -> dict:
    """Arguments of `feed_forward` by name, each requiring a gradient."""
    generator = torch.Generator().manual_seed(5)
    shapes = dict(x=(rows, d_model), w_in=(d_ff, d_model), b_in=(d_ff,), w_out=(d_model, d_ff), b_out=(d_model,))
    shapes |= dict(w_gate=(d_ff, d_model)) if gated else {}
    drawn = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}
    return {name: value.to(DEVICE, dtype).requires_grad_() for name, value in drawn.items()}


def gradients(values: dict, activation: str = "gelu", **words) -> dict:
    """out and the gradient of every argument that requires one, by name."""
    out = undivided.feed_forward(**values, activation=activation, backend="triton", **words)
    wanted = [name for name in NAMES if name in values and values[name].requires_grad]
    found = torch.autograd.grad(out.float().square().sum(), [values[name] for name in wanted])
    return {"out": out.detach(), **dict(zip(wanted, found, strict=True))}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", (*FEED_FORWARD_CASES, LARGE), ids=lambda case: case.name)
def test_forward_and_backward(case, dtype, path):
    with poison():
        verdicts = compare.feed_forward(case, dtype, "triton", DEVICE)
    assert not [verdict for verdict in verdicts if not verdict.ok]


@pytest.mark.parametrize("gated", [False, True])
def test_two_runs_agree_to_the_bit(path, gated):
    values = inputs(gated)
    assert equal(gradients(values), gradients(values))


def alike(first, second):
    """On a GPU the library chooses its products, and with them the order of sums, by more than the sizes."""
    if DEVICE != "cuda":
        assert equal(first, second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_any_strides(path):
    """Weights that are transposed views, x with wide rows, a bias in steps, and a gradient of stride 0 from sum()."""
    values = inputs()
    expected = gradients(values)

    def transposed(t: torch.Tensor) -> torch.Tensor:
        return t.detach().T.contiguous().T.requires_grad_()

    views = {name: transposed(value) if name[0] == "w" else value for name, value in values.items()}
    wide = torch.zeros(70, 100, device=DEVICE)
    wide[:, 7:31] = values["x"].detach()
    views["x"] = wide[:, 7:31].requires_grad_()
    views["b_in"] = values["b_in"].detach().repeat_interleave(2)[::2].requires_grad_()
    assert views["w_in"].stride() == (1, 80) and views["x"].stride() == (100, 1) and views["b_in"].stride() == (2,)
    alike(gradients(views), expected)

    columns = {**values, "x": values["x"].detach().T.contiguous().T.requires_grad_()}
    alike(gradients(columns), expected)

    out = undivided.feed_forward(**values, activation="gelu", backend="triton")
    ones = torch.autograd.grad(out, values["x"], torch.ones_like(out), retain_graph=True)
    assert torch.equal(torch.autograd.grad(out.sum(), values["x"])[0], ones[0])


def far_rows(small: torch.Tensor) -> torch.Tensor:
    """(3, 40) over memory that is never committed; the last row starts beyond 2^31 elements."""
    return torch.empty(2**31 + 2**20, dtype=torch.float16).as_strided((3, 40), (2**30 + 64, 1)).copy_(small)


def far_columns(small: torch.Tensor) -> torch.Tensor:
    """The same with enough between columns that 31 of them, the last of a tile, reach beyond 2^31 elements."""
    apart = 2**26 + 2**22
    return torch.empty(40 * apart, dtype=torch.float16).as_strided((3, 40), (1, apart)).copy_(small)


def call_offset(queue) -> None:
    from undivided.kernels.feed_forward import plan

    plan.fuses = lambda *sizes: True
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, 40, generator=generator).half() for _ in range(3)]

    def run(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor) -> list[torch.Tensor]:
        x.requires_grad_()
        out = undivided.feed_forward(x, w_in, None, w_out.T, backend="triton")
        return [out, *torch.autograd.grad(out.sum(), x)]

    near = run(*(value.clone() for value in values))
    x, *weights = values
    for spread in (far_rows, far_columns):
        queue.put(all(map(torch.equal, near, run(far_rows(x), *(spread(weight) for weight in weights)))))


@pytest.mark.skipif(DEVICE == "cuda", reason="needs memory that is committed lazily")
def test_offsets_beyond_32_bits():
    """In a process of its own: a 32-bit offset would read outside, which the interpreter does for real."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=call_offset, args=(queue,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert [queue.get(timeout=10) for _ in range(2)] == [True, True]


def one_by_one(numbers: list, dtype: torch.dtype, gated: bool) -> dict:
    """A network of one hidden element a row, h = the number, with a gate of 2: out[:, 0] = act(h) [2]."""
    x = torch.tensor([[number, 2.0] for number in numbers], dtype=dtype, device=DEVICE)
    first = torch.tensor([[1.0, 0.0]], dtype=dtype, device=DEVICE)
    values = dict(x=x, w_in=first, b_in=None, w_out=first.T, b_out=None)
    return values | (dict(w_gate=first.flip(1)) if gated else {})


def value_and_slope(function, values: dict, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = values["x"].detach().requires_grad_()
    out = function(**{**values, "x": x}, activation=activation)[:, 0]
    return out.detach(), torch.autograd.grad(out.sum(), x)[0][:, 0]


def triton(**words) -> torch.Tensor:
    return undivided.feed_forward(**words, backend="triton")


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_any_size(activation, dtype, gated, path):
    """Where the activation still bends, within the budget, number by number; far out, exactly its limit."""
    bent = [-20.0, -8.0, -5.0, -3.0, -1.0, -0.01, 0.01, 0.75, 2.0, 5.0, 20.0]
    values = one_by_one(bent, dtype, gated)
    wide = {name: value if value is None else value.double() for name, value in values.items()}
    triples = zip(
        value_and_slope(triton, values, activation),
        value_and_slope(reference.feed_forward, wide, activation),
        value_and_slope(honest.feed_forward, values, activation),
        strict=True,
    )
    for ours, exact, plain in triples:
        # The result is summed from terms of the number's size (h / 2 and h / 2 erf, say), twice that with the gate.
        rows = zip(bent, ours, exact, plain, strict=True)
        verdicts = [check(str(number), *row, scale=2 * abs(number)) for number, *row in rows]
        assert not [verdict for verdict in verdicts if not verdict.ok]

    largest = 3e4 if dtype == torch.float16 else 1e38
    far = [-largest, -1e4, -200.0, 200.0, 1e4, largest]
    values = one_by_one(far, dtype, gated)
    value, slope = value_and_slope(triton, values, activation)
    positive = torch.tensor(far, device=DEVICE) > 0
    assert torch.equal(value, torch.where(positive, values["x"][:, 0], 0) * (2 if gated else 1))
    assert torch.equal(slope, positive.to(dtype) * (2 if gated else 1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_as_in_the_reference(activation, path):
    values = one_by_one([float("nan"), float("inf"), float("-inf")], torch.float32, False)
    ours, _ = value_and_slope(triton, values, activation)
    exact, _ = value_and_slope(reference.feed_forward, values, activation)
    torch.testing.assert_close(ours, exact, rtol=0, atol=0, equal_nan=True)
    assert ours[0].isnan() and ours[1] == torch.inf


def test_the_slope_of_relu_at_zero_is_torchs(path):
    _, slope = value_and_slope(triton, one_by_one([0.0, -0.0], torch.float32, False), "relu")
    assert slope.tolist() == [0.0, 0.0]


def test_a_nan_stays_in_its_row(path):
    values = inputs()
    clean = gradients(values)
    with torch.no_grad():
        values["x"][3, 2] = float("nan")
    dirty = gradients(values)
    others = torch.arange(70, device=DEVICE) != 3
    for name in ("out", "x"):
        assert torch.equal(dirty[name][others], clean[name][others]) and dirty[name][3].isnan().all()
    assert all(dirty[name].isnan().all() for name in ("w_in", "b_in", "w_gate", "w_out"))


def test_an_infinite_weight_does_not_reach_the_bias_through_rows_that_are_not_there(path):
    """70 rows leave a row block ragged: 0 times infinity in its last rows would turn the column's sum into NaN."""
    values = inputs(gated=False)
    with torch.no_grad():
        values["w_out"][0, 5] = float("inf")
        values["b_in"].fill_(50.0)  # every row of the hidden layer is positive
    out = undivided.feed_forward(**values, activation="relu", backend="triton")
    (db_in,) = torch.autograd.grad(out, values["b_in"], torch.ones_like(out))
    assert db_in[5] == torch.inf and db_in.isnan().sum() == 0


FROZEN = [
    ("x",),
    ("w_in", "w_out", "w_gate"),  # a frozen network below trained biases
    ("x", "w_in", "b_in", "w_gate"),  # only the second map learns
    ("x", "w_out", "b_out"),
    ("w_in", "b_in", "w_out", "b_out", "w_gate"),  # only what is below the network
    ("x", "w_in", "b_in", "w_out", "w_gate"),  # only the last bias
    ("x", "w_in", "w_out", "b_out", "w_gate"),  # only the first bias
]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("frozen", FROZEN, ids="-".join)
def test_frozen_inputs_change_no_other_gradient(frozen, gated, monkeypatch):
    from undivided.kernels.feed_forward import plan

    for own in (True, False):
        monkeypatch.setattr(plan, "fuses", lambda *sizes, own=own: own)
        values = inputs(gated)
        every = gradients(values)
        for name in set(frozen) & set(values):
            values[name].requires_grad_(False)
        alike(gradients(values), {name: value for name, value in every.items() if name not in frozen})


def test_frozen_weights_cost_no_product(path, monkeypatch):
    from undivided.kernels.feed_forward import backward

    shapes = []
    right = backward.product
    monkeypatch.setattr(backward, "product", lambda a, b: shapes.append((*a.shape, b.shape[1])) or right(a, b))
    values = inputs(gated=False)
    for name in ("w_in", "w_out"):
        values[name].requires_grad_(False)
    gradients(values)
    dx, da = (70, 80, 24), (70, 24, 80)
    assert shapes == ([dx] if path == "fused" else [da, dx])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_without_gradients_the_result_is_the_same_and_nothing_is_kept(path, gated, dtype):
    from undivided.ops.triton_feed_forward import feed_forward_forward

    values = inputs(gated, dtype=dtype)
    trained = undivided.feed_forward(**values, activation="silu", backend="triton")
    with torch.no_grad(), poison():
        plain = undivided.feed_forward(**values, activation="silu", backend="triton")
        rest = [values[name] for name in NAMES[:5]]
        out, h, g = feed_forward_forward(*rest, "silu", values.get("w_gate"), save=False)
    assert torch.equal(plain, trained) and torch.equal(out, trained)
    assert h is None and g is None


@pytest.mark.parametrize("gated", [False, True])
def test_autocast(path, gated):
    """The library's products inside must not be cast a second time: float32 arithmetic stays float32."""
    values = inputs(gated)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = gradients(values)
    halved = {name: value.detach().bfloat16().requires_grad_() for name, value in values.items()}
    expected = gradients(halved)
    assert got["out"].dtype == torch.bfloat16 and got["w_in"].dtype == torch.float32
    assert equal({name: value.bfloat16() for name, value in got.items()}, expected)


def test_a_second_derivative_is_an_error_not_a_wrong_number(path):
    values = inputs(gated=False)
    out = undivided.feed_forward(**values, activation="gelu", backend="triton")
    (dx,) = torch.autograd.grad(out.square().sum(), values["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|second derivatives"):
        dx.sum().backward()


@pytest.mark.parametrize("gated", [False, True])
def test_opcheck(path, gated):
    """The registered ops, with transposed weights too, whose gradients must have the strides that the fakes promise."""
    values = inputs(gated, rows=5, d_model=16, d_ff=32)
    values["w_in"] = values["w_in"].detach().T.contiguous().T.requires_grad_()
    values["b_out"] = None
    arguments = [values.get(name) for name in NAMES]
    torch.library.opcheck(torch.ops.undivided.feed_forward_forward, (MODULE, "gelu", True, *arguments))
    plain = [None if value is None else value.detach() for value in arguments]
    torch.library.opcheck(torch.ops.undivided.feed_forward_forward, (MODULE, "gelu", False, *plain))
    x, w_in, _, w_out, _, w_gate = plain
    h = torch.randn(5, 32, device=DEVICE)
    g = torch.randn(5, 32, device=DEVICE) if gated else None
    for needs in ([True, True, True, True, True, gated], [True, False, False, False, True, False]):
        call = (MODULE, "gelu", torch.ones_like(x), x, h, g, w_in, w_out, w_gate, needs)
        torch.library.opcheck(torch.ops.undivided.feed_forward_backward, call)


def test_compiled_as_in_eager(path):
    """fullgraph, with a frozen weight and with no gradient at all."""
    values = inputs()
    values["w_in"].requires_grad_(False)

    def network(**words: torch.Tensor) -> torch.Tensor:
        return undivided.feed_forward(**words, activation="silu", backend="triton")

    wanted = [value for value in values.values() if value.requires_grad]
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    out, expected = compiled(**values), network(**values)
    assert torch.equal(out, expected)
    got, right = (torch.autograd.grad(y.square().sum(), wanted) for y in (out, expected))
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))
    with torch.no_grad():
        assert torch.equal(compiled(**values), expected)


def test_where_the_activation_is_fused():
    from undivided.kernels.feed_forward.plan import fuses

    half = torch.bfloat16
    assert fuses(16384, 512, 2048, False, half) and fuses(16384, 1024, 2736, True, half)
    assert not fuses(16384, 2048, 8192, False, half)  # the pass is too small a share
    assert not fuses(64, 512, 2048, False, half)  # too few tiles to fill a GPU
    assert not fuses(16384, 520, 2048, False, half) and not fuses(16384, 512, 2050, False, half)  # odd addresses
    assert not fuses(16384, 512, 2048, False, torch.float32)
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    try:
        switch.allow_tf32 = True
        assert fuses(16384, 512, 2048, False, torch.float32)
    finally:
        switch.allow_tf32 = before
