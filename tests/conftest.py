"""Settings that must hold before anything imports Triton or the package."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)  # before `-m gpu` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU, the tests of a module with a DEVICE run on it: all of them are marked `gpu`."""
    items[:] = [item for item in items if not same_code_as_by_default(item)]
    if torch.cuda.is_available():
        for item in items:
            if str(getattr(getattr(item, "module", None), "DEVICE", "cpu")).startswith("cuda"):
                item.add_marker(pytest.mark.gpu)
        return
    needs_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(needs_gpu)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `variant` runs once with every instruction set that the processor has, unless it names its own."""
    named = any("variant" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "variant" in metafunc.fixturenames and not named:
        from undivided import _C

        metafunc.parametrize("variant", _C.variants(), indirect=True)


@pytest.fixture(scope="module")
def little_to_collect() -> Iterator[None]:
    """Measurements collect garbage before each sample and would walk through the modules of all other tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


ONE_CODE = ("avx512_bf16", "avx512_bf16_dots")  # for all but bfloat16


def same_code_as_by_default(item: pytest.Item) -> bool:
    words = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if words.get("variant") not in ONE_CODE or words.get("dtype") in (None, torch.bfloat16):
        return False
    from undivided import _C

    return words["variant"] != _C.variant() and _C.variant() in ONE_CODE


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    from undivided import _C

    before = _C.variant()
    _C.set_variant(request.param)
    yield request.param
    _C.set_variant(before)
