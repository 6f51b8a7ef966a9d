"""Where a long command will write at its end is looked at before it starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from . import CommandError


def check_writable(*paths: Path) -> None:
    """Makes the folders that these files will be in.

    Raises:
        CommandError: one of them is there and no file, or cannot be written.
    """
    for path in paths:
        if path.exists() and not path.is_file():
            raise CommandError(f"{path} is a folder or a device, a file is needed")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent):
                pass
            if path.exists():
                path.open("ab").close()
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error
