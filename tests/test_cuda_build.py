"""The CUDA kernels in the built extension: what the compiler made of them. Needs an nvcc at build time, no GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from undivided.rules import CUDA_MISSING

pytestmark = pytest.mark.skipif(CUDA_MISSING is not None, reason=f"no CUDA kernels: {CUDA_MISSING}")
KERNELS = [f"{element} {head_dim} {kind}" for element in ("bfloat16", "float16") for head_dim in (64, 128)
           for kind in ("any", "plain")]  # fmt: skip


def tool(name: str) -> str:
    """CUDA's own, else the one that Triton brings."""
    triton = importlib.util.find_spec("triton")
    folders = [Path("/usr/local/cuda/bin")]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which(name) or next((str(path / name) for path in folders if (path / name).is_file()), None)
    if found is None:
        pytest.skip(f"no {name}")
    return found


@cache
def text_of(option: str) -> str:
    """What cuobjdump says of the extension."""
    extension = importlib.util.find_spec("undivided._C")
    assert extension is not None and extension.origin is not None
    command = [tool("cuobjdump"), option, extension.origin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def functions(option: str, kernel: str) -> dict[str, str]:
    """The part of each function whose name has `kernel` in it."""
    parts = re.split(r"Function\s*:?\s*(\w+):?\s", text_of(option))[1:]
    return {name: body for name, body in zip(parts[::2], parts[1::2], strict=True) if kernel in name}


def dump(option: str) -> dict[str, str]:
    """What cuobjdump says of each attention kernel of the extension."""
    return {readable(name): body for name, body in functions(option, "attention_forward_kernel").items()}


def readable(name: str) -> str:
    element, head_dim, plain = re.search(r"(Bfloat16|Float16)ELi(\d+)ELb([01])", name).groups()
    return f"{element.lower()} {head_dim} {'plain' if plain == '1' else 'any'}"


def test_all_kinds_are_there():
    assert sorted(dump("--dump-resource-usage")) == sorted(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_spills(kernel):
    usage = dump("--dump-resource-usage")[kernel]
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage).groups())
    assert (stack, local) == (0, 0)
    assert registers <= 168  # of 65536, by 384 threads, before they are shared out anew
    assert not re.search(r"\b(LDL|STL)\b", dump("-sass")[kernel])


@pytest.mark.parametrize("kernel", KERNELS)
def test_products_run_on_the_tensor_cores(kernel):
    """Scores and sums, each in two places: the first tile or the loop, the loop or the last tile."""
    sass, head_dim = dump("-sass")[kernel], int(kernel.split()[1])
    assert len(re.findall(r"HGMMA\.64x\d+x16\.F32", sass)) == 2 * (head_dim // 16 + 128 // 16)
    assert len(re.findall(r"WARPGROUP\.DEPBAR", sass)) == 4  # one for each wait: none was added
    assert len(re.findall("USETMAXREG", sass)) == 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_exponentials_stay_within_the_turn(kernel):
    """Warpgroups exclude each other from them; a compiler that moves them out makes that void."""
    lines = [line for line in dump("-sass")[kernel].splitlines() if re.search(r"\b(BAR\.|MUFU\.EX2|HGMMA)", line)]
    begin = next(n for n, line in enumerate(lines) if "BAR.SYNC" in line and "0x100" in line)
    end = next(n for n in range(begin, len(lines)) if "BAR.ARV" in lines[n])
    assert sum("MUFU.EX2" in line for line in lines[begin:end]) >= 64 + 2


@pytest.mark.parametrize("kernel", ["feed_forward_forward_kernel", "feed_forward_backward_kernel"])
def test_the_feed_forward_is_as_it_was_written(kernel):
    """Two dtypes, gated and not. Nothing spills; the products of a step are one group, and no wait was added."""
    usage, sass = functions("--dump-resource-usage", kernel), functions("-sass", kernel)
    assert len(usage) == len(sass) == 4
    for name, text in usage.items():
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text).groups())
        assert (stack, local) == (0, 0) and registers <= 128  # of 65536, by 512 threads
        assert not re.search(r"\b(LDL|STL)\b", sass[name])
        assert len(re.findall(r"HGMMA\.64x128x16\.F32", sass[name])) == 2 * 64 // 16
        assert len(re.findall(r"WARPGROUP\.DEPBAR", sass[name])) == 2
        assert len(re.findall("USETMAXREG", sass[name])) == 2
