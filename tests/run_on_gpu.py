"""Everything that needs a GPU, in parts: `make gpu OUT=folder PART=all`.

Nothing is fetched: the Python that runs this file must have torch, Triton, pybind11, ninja, setuptools, wheel and
pytest, and an nvcc must be found. Each part writes a log into the folder; one that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "PYTHONUNBUFFERED": "1"}
NOT_FOUND, OUT_OF_TIME = 127, 124  # as a shell says it
ALONE = 560  # seconds that a part has when it is the only one
GRACE = 15  # and how many an interrupted command has to come to an end


@dataclass(frozen=True)
class Part:
    """Commands that run one after the other, all within `seconds` where other parts follow. What they print goes to the
    part's log, but for the standard output of a part that has a `result`, a file of that name."""

    seconds: int
    commands: tuple[tuple[str, ...], ...]
    result: str | None = None


def parts(out: Path) -> dict[str, Part]:
    """Together under ten minutes: the tests compile kernels in several processes, and verify finds them compiled."""
    cores = str(os.cpu_count() or 1)
    several = ("-n", cores) if importlib.util.find_spec("xdist") else ()
    if importlib.util.find_spec("pytest_timeout"):  # a kernel that never ends stops one test, not all
        several += ("--timeout", "120", "--timeout-method", "thread")
    wheel = ("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "build/wheels")
    undivided = (PYTHON, "-m", "undivided")
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    small = ("--error-exitcode", "9", PYTHON, "tests/small_on_gpu.py")
    # cuBLAS's kernels synchronise by what racecheck does not know.
    tools = (("memcheck",), ("racecheck", "--kernel-name-exclude", "kernel_substring=nvjet"))
    return {
        "build": Part(
            70,  # 23 s with 16 cores for the extension, and again for the wheel
            (
                (PYTHON, "setup.py", "--quiet", "build_ext", "--inplace"),  # what the other parts run
                (PYTHON, *wheel, "."),
                (*undivided, "info", "--backends"),
            ),
        ),
        "test": Part(290, ((PYTHON, "-m", "pytest", "-m", "gpu", "-vv", "--tb=short", "-ra", *several),)),
        "verify": Part(
            80, ((*undivided, "verify", "--device", "cuda", "--json", "--jobs", cores),), result="verify.json"
        ),
        "sanitize": Part(80, tuple((sanitizer, "--tool", *tool, *small) for tool in tools)),
        "bench": Part(80, ((*undivided, "bench", "--quick", "--device", "cuda", "--out", str(out / "bench")),)),
    }


def run(name: str, part: Part, out: Path, seconds: int) -> int:
    """0, or the exit status of the first command that failed; the log says which."""
    statuses = []
    end = time.monotonic() + seconds
    with ExitStack() as files:
        log = files.enter_context(open(out / f"{name}.log", "w"))
        result = files.enter_context(open(out / part.result, "w")) if part.result else log
        for command in part.commands:
            print("$", *command, file=log, flush=True)
            start = time.monotonic()
            statuses.append(call(command, result, log, max(end - start, 1)))
            print(f"[exit {statuses[-1]} after {time.monotonic() - start:.0f} s]", file=log, flush=True)
    return next((status for status in statuses if status), 0)


def call(command: tuple[str, ...], result: IO[str], log: IO[str], seconds: float) -> int:
    """The exit status. Where time runs out, everything that the command started ends too."""
    try:
        child = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=result, stderr=log, start_new_session=True)
    except FileNotFoundError:
        print(f"{command[0]} is not installed: nothing was checked", file=log, flush=True)
        return NOT_FOUND
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGINT)  # at which pytest still says what has failed so far
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        print(f"stopped: of the part's time {seconds:.0f} s were left", file=log, flush=True)
        return OUT_OF_TIME


def no_gpu() -> str | None:
    """None where torch sees a GPU; else a line that says what is missing."""
    code = "import torch; print(torch.cuda.is_available(), torch.__version__)"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return f"{PYTHON} has no torch: name one that has with PYTHON=..."
    available, version = done.stdout.split()
    return None if available == "True" else f"torch {version} of {PYTHON} sees no GPU; only PART=build runs without one"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="the folder for logs and results")
    parser.add_argument("--part", default="all", help="build, test, verify, sanitize, bench, or all (the default)")
    args = parser.parse_args()
    if not args.out:
        sys.exit("say where the results go: make gpu OUT=folder")
    out = Path(args.out).resolve()
    every = parts(out)
    if args.part not in (*every, "all"):
        sys.exit(f"PART={args.part} is unknown; allowed: {', '.join(every)}, all")
    if args.part != "build" and (reason := no_gpu()):
        sys.exit(reason)
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in every if args.part == "all" else (args.part,):
        start = time.monotonic()
        status = run(name, every[name], out, every[name].seconds if args.part == "all" else ALONE)
        failed = failed or status != 0
        line = f"{name:<9} exit {status:<3} {time.monotonic() - start:4.0f} s  {out / name}.log"
        print(line, flush=True)
        with open(out / "summary.txt", "a") as summary:
            print(line, file=summary)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
