"""Rules that several backends share. A rule takes a call and returns None or a sentence with the cure."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from .dispatch import AttentionCall, Call, module_missing
from .environment import interpreting

# Read once, when the tables are built: a rule is then plain arithmetic, which torch.compile traces through.
TRITON_MISSING = module_missing("triton")
EXTENSION_MISSING = module_missing("undivided._C")
INTERPRETING = interpreting()
# Whether the processor multiplies bfloat16 in tiles (AMX); asked of torch, since the extension is not loaded here.
TILES = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def cuda_missing() -> str | None:
    """None when the extension was built with its CUDA kernels; otherwise the reason that the build wrote down."""
    record = Path(__file__).parent / "_build_info.json"
    if EXTENSION_MISSING is not None or not record.exists():
        return EXTENSION_MISSING or "the package runs from a source tree that was not installed"
    built = json.loads(record.read_text())
    return None if built.get("cuda") else str(built.get("cuda_skipped") or "the build left them out")


CUDA_MISSING = cuda_missing()


def needs_triton(call: Call) -> str | None:
    return None if TRITON_MISSING is None else f"{TRITON_MISSING}; pip install 'undivided[triton]'"


def needs_gpu_or_interpreter(call: Call) -> str | None:
    if call.device == "cuda" or INTERPRETING:
        return None
    return (
        f"tensors are on {call.device!r}, Triton compiles for 'cuda'; "
        "TRITON_INTERPRET=1 runs its kernels on a CPU, slowly"
    )


def faster_than_the_interpreter(call: Call) -> str | None:
    """For `auto`: without a GPU Triton's kernels run in Python."""
    return None if call.device == "cuda" else "Triton's interpreter is for tests"


def needs_cpu_extension(call: Call) -> str | None:
    if EXTENSION_MISSING is None:
        return None
    return "the compiled extension undivided._C is not there; reinstall with a C++17 compiler (undivided info says why)"


def needs_cuda_extension(call: Call) -> str | None:
    if CUDA_MISSING is None:
        return None
    reason = CUDA_MISSING.splitlines()[0]
    return f"there are no CUDA kernels: {reason}; reinstall where CUDA's nvcc is on PATH (undivided info says more)"


def on_hopper(call: Call) -> str | None:
    """The CUDA C++ kernels use instructions that compute capability 9.0 alone has."""
    if call.device != "cuda":
        return f"tensors are on {call.device!r}, this backend runs on 'cuda'"
    capability = compute_capability()
    if capability is None:
        return "torch sees no GPU"
    major, minor = capability
    return None if capability == (9, 0) else f"the GPU has compute capability {major}.{minor}, 9.0 is needed"


@cache
def compute_capability() -> tuple[int, int] | None:
    """None without a GPU. Asked once: the GPUs of a machine are alike, and torch takes its time to answer."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def on_cpu(call: Call) -> str | None:
    return None if call.device == "cpu" else f"tensors are on {call.device!r}, this backend runs on 'cpu'"


def kernel_dtype(call: Call) -> str | None:
    allowed = ("float32", "bfloat16", "float16")
    return (
        None
        if call.dtype in allowed
        else f"dtype {call.dtype} is not one of {', '.join(allowed)}; cast, or use the reference"
    )


def head_dims(call: AttentionCall) -> str | None:
    if 8 <= call.head_dim <= 256 and 8 <= call.head_dim_v <= 256:
        return None
    return f"head_dim {call.head_dim} / head_dim_v {call.head_dim_v} is outside 8 to 256"


def tensor_cores(call: Call) -> str | None:
    """Triton's kernels need compute capability 8.0 for bfloat16 and asynchronous copies."""
    capability = compute_capability() if call.device == "cuda" else None
    if capability is None:
        return None
    major, minor = capability
    return None if major >= 8 else f"the GPU has compute capability {major}.{minor}, at least 8.0 is needed"


# What depends on the machine and the installation, not on the call: left out where the question is what a kernel has.
OF_THE_MACHINE = (
    needs_triton,
    needs_gpu_or_interpreter,
    needs_cpu_extension,
    needs_cuda_extension,
    on_hopper,
    tensor_cores,
)
