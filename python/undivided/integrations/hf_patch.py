"""Replaces methods of single modules, and undoes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

from .hf_models import NAME

MISSING = "an attribute that was not there"  # a string: a copy of the model has copies of what undoes its changes


class Lent:
    """A function bound to a module, as a method is; but pickle would look for a method's function in the module.

    A function that no name leads to says in `recipe` who makes it, and of what.
    """

    def __init__(self, function: Callable, module: nn.Module) -> None:
        self.__func__, self.__self__ = function, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(MethodType(self.__func__, self.__self__))

    def __reduce__(self) -> tuple[Any, ...]:
        recipe = getattr(self.__func__, "recipe", None)
        return (Lent, (self.__func__, self.__self__)) if recipe is None else (made_again, (*recipe, self.__self__))


def made_again(maker: Callable, argument: Any, module: nn.Module) -> Lent:
    return Lent(maker(argument), module)


@dataclass
class Patches:
    """What was changed on a model, in the order in which it was."""

    methods: list[tuple[nn.Module, str, Lent]] = field(default_factory=list)
    attributes: list[tuple[Any, str, Any, Any]] = field(default_factory=list)  # (owner, name, value before, after)

    def method(self, module: nn.Module, name: str, function: Callable) -> str | None:
        """Binds `function` to the one module as its method `name`; a sentence where somebody else did that before.

        Bound, and no closure: a copy of the model then gets methods of its own, and `type(module)` still has the
        original.
        """
        if name in vars(module):
            return f"its {name} was replaced by somebody else"
        lent = Lent(function, module)
        setattr(module, name, lent)
        self.methods.append((module, name, lent))
        return None

    def replaced(self, module: nn.Module, name: str) -> bool:
        return any(owner is module and method == name for owner, method, _ in self.methods)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute, which may be a new one."""
        self.attributes.append((owner, name, getattr(owner, name, MISSING), value))
        setattr(owner, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What is loaded in a new process finds our attention there."""
        from transformers import AttentionInterface

        from .huggingface import register

        vars(self).update(state)
        if NAME not in AttentionInterface().valid_keys():
            register()

    def undo(self) -> None:
        """What was changed again since then stays as it is."""
        for module, name, lent in self.methods:
            if vars(module).get(name) is lent:
                delattr(module, name)
        for owner, name, before, after in reversed(self.attributes):
            if getattr(owner, name, MISSING) != after:
                continue
            if before == MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def known_class(module: nn.Module) -> str:
    """The name of a module's class where transformers or torch wrote it; "" where it may only be called the same."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith(("transformers.", "torch.nn.")) else ""


def untouched(module: nn.Module, lent: Callable | None = None) -> bool:
    """Whether calling the module is nothing but its class's forward, or `lent`: no hook, nothing replaced.

    What is fused does not call its modules, so their hooks would not run and an adapter's forward would be passed by.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    own = vars(module).get("forward")
    return not hooks and (own is None or getattr(own, "__func__", own) is lent)
