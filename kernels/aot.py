"""Compiling a kernel for a GPU that is not there, and what the result needs of it.

Triton decides when a kernel is defined whether it is interpreted, so this must run in a process without
TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# The largest shared memory of one block, bytes, by compute capability.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}


@dataclass(frozen=True)
class Resources:
    """Registers a thread, bytes of stack a thread (a spill shows here), bytes of shared memory a block."""

    registers: int
    stack: int
    shared: int


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 1,
    aligned: tuple[str, ...] = (),
) -> Resources:
    """Compiles for compute capability `capability` (80, 90, 100).

    Args:
        types: {argument: Triton type, as "*bf16" or "i32"}; `constants` are the compile-time ones.
        aligned: arguments that are multiples of 16, as the pointers and strides of most tensors are.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    missing = [name for name in kernel.arg_names if name not in types and name not in constants]
    if missing:
        raise ValueError(f"no type or constant for {', '.join(missing)}")
    places = {name: place for place, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(places[name],): value for name, value in constants.items()},
        attrs={(places[name],): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = usage(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared)


POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32",
            torch.int64: "*i64", torch.uint8: "*u8"}  # fmt: skip


def compile_call(
    kernel: Any, arguments: Mapping[str, Any], capability: int, num_warps: int = 4, num_stages: int = 1
) -> Resources:
    """Compiles as a call with these arguments would: tensors, numbers, and by UPPER names what is compile-time.

    Tensors may be on the meta device. As in a call an integer 1 is compiled in, and multiples of 16 are known as such.
    """
    types, constants, aligned = {}, {}, []
    for name, value in arguments.items():
        whole = isinstance(value, int)
        if name.isupper() or whole and value == 1:
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
        else:
            types[name] = "fp32" if not whole else "i32" if -(2**31) <= value < 2**31 else "i64"
        if name in types and (not whole or value % 16 == 0) and types[name] != "fp32":
            aligned.append(name)
    return compile_kernel(kernel, types, constants, capability, num_warps, num_stages, tuple(aligned))


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack) that cuobjdump reports."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump gave no resource usage: {text.stdout[-300:]}")
    return int(found[1]), int(found[2])
