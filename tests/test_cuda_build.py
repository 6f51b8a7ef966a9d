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
ELEMENTS = ("bfloat16", "float16")
FORWARD = [
    f"{element} {kind}"
    for element in ELEMENTS
    for kind in ("64 any 2", "64 plain 2", "64 plain 3", "128 any 2", "128 plain 2")
]  # warpgroups that compute
BACKWARD = [f"{element} {head_dim} {kind}" for element in ELEMENTS for head_dim in (64, 128)
            for kind in ("plain", "any", "any table")]  # fmt: skip
# A few numbers of a thread, of those kernels that do more than the plain ones: bytes.
MAY_SPILL = {"any": 64, "table": 112}


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


def dump(option: str, which: str) -> dict[str, str]:
    """What cuobjdump says of each attention kernel of the extension. which: forward or backward."""
    found = functions(option, f"attention_{which}_kernel")
    return {readable(name, which): body for name, body in found.items()}


def readable(name: str, which: str) -> str:
    element, head_dim, plain, more = re.search(r"(Bfloat16|Float16)ELi(\d+)ELb([01])EL[ib](\d)", name).groups()
    words = [element.lower(), head_dim, "plain" if plain == "1" else "any"]
    words += [more] if which == "forward" else ["table"] if more == "1" else []
    return " ".join(words)


def test_all_kinds_are_there():
    assert sorted(dump("--dump-resource-usage", "forward")) == sorted(FORWARD)
    assert sorted(dump("--dump-resource-usage", "backward")) == sorted(BACKWARD)


def usage(kernel: str, which: str) -> tuple[int, ...]:
    """Registers, bytes of stack, bytes of local memory."""
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", dump("--dump-resource-usage", which)[kernel])
    return tuple(map(int, found.groups()))


@pytest.mark.parametrize("kernel", FORWARD)
def test_the_forward_does_not_spill(kernel):
    registers, stack, local = usage(kernel, "forward")
    assert (stack, local) == (0, 0)
    # Of 65536, by 384 or 512 threads, before they are shared out anew.
    assert registers <= (128 if kernel.endswith("3") else 168)
    assert not re.search(r"\b(LDL|STL)\b", dump("-sass", "forward")[kernel])


@pytest.mark.parametrize("kernel", BACKWARD)
def test_the_backward_spills_a_few_numbers_at_most(kernel):
    registers, stack, local = usage(kernel, "backward")
    assert registers <= 168 and local == 0 and stack <= MAY_SPILL.get(kernel.split()[-1], 0)


@pytest.mark.parametrize("kernel", FORWARD)
def test_products_of_the_forward_run_on_the_tensor_cores(kernel):
    """Scores and sums, each in two places: the first tile or the loop, the loop or the last tile."""
    sass, head_dim = dump("-sass", "forward")[kernel], int(kernel.split()[1])
    assert len(re.findall(r"HGMMA\.64x\d+x16\.F32", sass)) == 2 * (head_dim // 16 + 128 // 16)
    assert len(re.findall(r"WARPGROUP\.DEPBAR", sass)) == 4  # one for each wait: none was added
    assert len(re.findall("USETMAXREG", sass)) == 2


@pytest.mark.parametrize("kernel", BACKWARD)
def test_products_of_the_backward_run_on_the_tensor_cores(kernel):
    """Two along head_dim, two along the queries of a tile, one along its 128 keys."""
    sass, head_dim = dump("-sass", "backward")[kernel], int(kernel.split()[1])
    queries = 128 if head_dim == 64 else 64
    assert len(re.findall(r"HGMMA\.64x\d+x16\.F32", sass)) == 2 * head_dim // 16 + 2 * queries // 16 + 128 // 16
    assert len(re.findall(r"WARPGROUP\.DEPBAR", sass)) == 4
    assert len(re.findall("USETMAXREG", sass)) == 2


@pytest.mark.parametrize("kernel", FORWARD)
def test_a_turn_is_as_short_as_the_start_of_the_products(kernel):
    """A warpgroup keeps the others waiting while it gives the tensor cores their work, not while it computes."""
    sass, head_dim = dump("-sass", "forward")[kernel], int(kernel.split()[1])
    lines = [line for line in sass.splitlines() if re.search(r"\b(BAR\.|MUFU\.EX2|HGMMA)", line)]
    ends = [n for n, line in enumerate(lines) if "BAR.ARV" in line and any("HGMMA" in one for one in lines[:n])]
    end = ends[0]
    begin = max(n for n in range(end) if "BAR.SYNC" in lines[n])
    turn = lines[begin:end]
    assert sum("HGMMA" in line for line in turn) == head_dim // 16 + 128 // 16
    assert not any("MUFU.EX2" in line for line in turn)


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
