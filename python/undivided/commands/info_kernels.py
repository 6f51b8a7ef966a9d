"""What each specialisation of the Triton kernels needs of a GPU, compiled here for GPUs that need not be there."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ..environment import interpreting
from ..rules import TRITON_MISSING
from . import CommandError

HEAD = f"{'op':<17}{'kernel and call':<64}{'target':<9}{'registers':>9}{'spills':>8}{'shared memory':>15}{'limit':>9}"


def print_kernels(words: Sequence[str]) -> None:
    """A line for each specialisation and target whose line holds every one of `words`.

    Registers are a thread's; spills are a thread's bytes of stack, which a kernel without spills does not have; shared
    memory is a block's, in bytes, beside what the GPU has. The first time each compiles, which takes seconds; Triton
    keeps what it has compiled.

    Raises:
        CommandError: Triton is not installed, its interpreter is on, or no line holds the words.
    """
    if TRITON_MISSING is not None:
        raise CommandError(f"{TRITON_MISSING}, so there are no Triton kernels; pip install 'undivided[triton]'")
    if interpreting():
        raise CommandError("TRITON_INTERPRET is set, so kernels are interpreted, not compiled; unset it")
    catalogue = importlib.import_module("undivided.kernels.catalogue")
    limits = importlib.import_module("undivided.kernels.aot").SHARED_LIMIT
    work = [
        (op, name, target, entry)
        for op, entries in catalogue.CATALOGUE.items()
        for name, entry in entries()
        for target in limits
        if all(word in f"{op} {name} sm_{target}" for word in words)
    ]
    if not work:
        raise CommandError(f"no kernel's line holds {' and '.join(map(repr, words))}; without words all are listed")
    print(HEAD)
    for op, name, target, entry in work:
        for kernel, needs in catalogue.compiled(entry, name, target):
            numbers = f"{needs.registers:>9}{needs.stack:>8}{needs.shared:>15}{limits[target]:>9}"
            print(f"{op:<17}{kernel:<64}sm_{target:<6}{numbers}", flush=True)
