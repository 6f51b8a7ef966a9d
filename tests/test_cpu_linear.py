"""The linear map of a few rows in C++: every variant, dtype and shape class against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

_C = pytest.importorskip("undivided._C", reason="the compiled extension is not built")

from undivided.cpu import DTYPES  # noqa: E402
from undivided.cpu.linear import MOST_ROWS, linear  # noqa: E402
from undivided.products import FEW  # noqa: E402
from undivided.testing import check, poison  # noqa: E402

# One number; odd sizes under, at and over a vector, a step of words and a task of 64 outputs; several tasks.
SHAPES = [(1, 1), (7, 5), (16, 15), (31, 16), (32, 63), (33, 64), (64, 65), (100, 130), (513, 200)]
ROWS = [1, 2, 3, 4, 5, 8, 15, 16]  # four at a time, and what is left over


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_variant_shape_and_number_of_rows(variant, dtype):
    for columns, outputs in SHAPES:
        w, b = random(outputs, columns, dtype=dtype), random(outputs, dtype=dtype, seed=1)
        for rows in ROWS:
            x = random(rows, columns, dtype=dtype, seed=2)
            for bias in (b, None):
                wide = [None if value is None else value.double() for value in (x, w, bias)]
                with poison():
                    out = linear(x, w, bias)
                assert check("out", out, F.linear(*wide), F.linear(x, w, bias)).ok, (columns, outputs, rows)


def test_rows_of_a_weight_may_lie_apart():
    wide = random(40, 100)
    x = random(3, 50, seed=1)
    torch.testing.assert_close(linear(x, wide[:, 20:70]), F.linear(x, wide[:, 20:70]))
    torch.testing.assert_close(linear(x, wide[::2, :50]), F.linear(x, wide[::2, :50]))
    torch.testing.assert_close(
        linear(random(50, 3, seed=1).T, wide[:, :50]), F.linear(random(50, 3, seed=1).T, wide[:, :50])
    )
    torch.testing.assert_close(linear(x, wide[:1, :50].expand(9, 50)), F.linear(x, wide[:1, :50].expand(9, 50)))


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads(dtype, threads):
    x, w, b = random(16, 300, dtype=dtype), random(700, 300, dtype=dtype, seed=1), random(700, dtype=dtype, seed=2)
    threads(1)
    alone = torch.cat([linear(x[row : row + 1], w, b) for row in range(16)])
    for number in (1, 2, 3):
        threads(number)
        for rows in (1, 2, 5, 16):
            assert torch.equal(linear(x[:rows], w, b), alone[:rows]), (number, rows)


def test_nothing_leaks_from_one_row_to_another():
    x, w = random(5, 70), random(33, 70, seed=1)
    clean = linear(x, w)
    x[2, 69], w[7, 0] = float("nan"), float("inf")
    out = linear(x, w)
    rest = torch.ones(5, 33, dtype=torch.bool)
    rest[2], rest[:, 7] = False, False
    assert torch.equal(out[rest], clean[rest]) and out[2].isnan().all() and not out[:, 7].isfinite().any()


def test_the_limit_is_the_kernels():
    assert MOST_ROWS == FEW
