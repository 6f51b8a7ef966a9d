"""Packages that only some of the tasks need."""

from __future__ import annotations

import importlib
from types import ModuleType


def needed(package: str, extra: str) -> ModuleType:
    """The module `package`, which comes with the extra `extra` of this one.

    Raises:
        ImportError: it is not installed; the text says how it is.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is not installed ({error}): pip install 'undivided[{extra}]'") from error
