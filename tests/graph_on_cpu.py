"""A CUDA graph on a CPU: what a step does is written down, has no effect, and is done by each replay.

A replay calls every op again with the same tensors and the same numbers, and writes the results where those of the
recording were. So whatever differs from step to step and is not in a tensor that lasts is the wrong one in a replay:
a Python number, a tensor that was made before, the address of another. After a recording all that it made is NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from undivided.ops import checks, registration
from undivided.products import for_few_rows, product

Run = Callable[[], Tensor]

# What waits for a GPU: a number of Python's from a tensor, a shape that depends on values, a tensor from the host.
WAITS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
    "aten::lift_fresh",
}
EMPTY = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided"}
OUTSIDE = ("tolist", "numpy", "data_ptr")  # what reads memory past the dispatcher; an op may, within its node

LIBRARY = torch.library.Library("graph_on_cpu", "DEF")
LIBRARY.define("product(Tensor x, Tensor w, Tensor? bias) -> Tensor")
LIBRARY.impl("product", product, "CPU")


class Node:
    """One call of an op, with the tensors that it reads and those that it made."""

    def __init__(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.func, self.args, self.kwargs, self.out = func, args, kwargs, out

    def again(self) -> None:
        if self.func._schema.name in EMPTY:
            return
        given = {address(value) for value in tensors((self.args, self.kwargs))}
        results = self.func(*self.args, **self.kwargs)
        for made, result in zip(tensors(self.out), tensors(results), strict=True):
            if address(made) not in given:  # a view, or what was written in place, is there already
                made.copy_(result)


class Recording(TorchDispatchMode):
    """The nodes of what runs within. Outside of ops nothing may look at a value or an address."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.within = False
        self.found: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # and a copy, before it changed
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        refuse(func, args)
        self.within = True
        try:
            given = tensors((args, kwargs))
            self._keep(func, given)
            out = func(*args, **kwargs)
            known = {address(value) for value in given}
            self.made |= {address(value): value for value in tensors(out) if address(value) not in known}
        finally:
            self.within = False
        self.nodes.append(Node(func, args, kwargs, out))
        return out

    def _keep(self, func: Any, given: list[Tensor]) -> None:
        """A copy of all that an op may write to."""
        if not func._schema.is_mutable:
            return
        for value in given:
            if address(value) not in self.made:
                storage = value.untyped_storage()
                self.found.setdefault(address(value), (storage, storage.clone()))

    def undo(self) -> None:
        """As if nothing had run: what was there is as before, and what was made holds nothing."""
        for storage, before in self.found.values():
            storage.copy_(before)
        for value in self.made.values():
            whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
            whole.fill_(torch.nan if whole.is_floating_point() else 0)

    def again(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # which has cast already
            for node in self.nodes:
                node.again()


def tensors(values: Any) -> list[Tensor]:
    """Those among the values that have memory."""
    return [value for value in tree_iter(values) if isinstance(value, Tensor) and value.numel()]


def address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def refuse(func: Any, args: Any) -> None:
    """Raises: RuntimeError for what would wait for the GPU."""
    name = func._schema.name + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
    masks = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in tree_iter(args[1:2]))
    if name in WAITS or func._schema.name in WAITS or (name.startswith("aten::index") and masks):
        raise RuntimeError(f"{name} is not permitted while a graph is recorded")


@contextmanager
def as_on_a_gpu(recording: Recording) -> Iterator[None]:
    """Our kernels are nodes, and the checks of values that a GPU does not have are not made."""
    with pytest.MonkeyPatch.context() as patch:
        swaps = {"by_registered_op": registration.by_registered_op, "readable": checks.readable}
        for name, module in list(sys.modules.items()):
            if name.startswith("undivided.ops."):
                for word, function in swaps.items():
                    if getattr(module, word, None) is function:
                        patch.setattr(module, word, lambda *values, word=word: word == "by_registered_op")
        patch.setattr(sys.modules["undivided.reference.attention"], "may_look", lambda value: False, raising=False)
        patch.setattr(sys.modules["undivided.ops.direct"], "POSSIBLE", False)
        linear, node = sys.modules["undivided.ops.linear"], torch.ops.graph_on_cpu.product
        patch.setattr(linear, "by_registered_op", lambda *values: False)
        patch.setattr(linear, "product", node)
        patch.setattr(linear, "for_few_rows", lambda x, w: None if for_few_rows(x, w) is None else node)
        for word in OUTSIDE:
            patch.setattr(Tensor, word, guarded(recording, word), raising=False)
        yield


def guarded(recording: Recording, word: str) -> Callable[..., Any]:
    function = getattr(Tensor, word)

    def call(self: Tensor, *values: Any, **words: Any) -> Any:
        if not recording.within:
            raise RuntimeError(f"Tensor.{word} is not permitted while a graph is recorded")
        return function(self, *values, **words)

    return call


class Recorder:
    """In the place of `record_graph`. It counts recordings and replays."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, run: Run) -> Run:
        self.recordings += 1
        recording = Recording()
        with as_on_a_gpu(recording), recording:
            out = run()
        recording.undo()

        def replay() -> Tensor:
            self.replays += 1
            recording.again()
            return out

        return replay
