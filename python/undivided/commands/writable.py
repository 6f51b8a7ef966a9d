"""Where a long command will write at its end is looked at before it starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from . import CommandError


def try_folder(folder: Path) -> None:
    """Makes the folder, and a file in it that goes again. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass


def check_writable(*paths: Path) -> None:
    """Makes the folders that these files will be in.

    Raises:
        CommandError: one of them is there and no file, or cannot be written.
    """
    for path in paths:
        if path.exists() and not path.is_file():
            raise CommandError(f"{path} is a folder or a device, a file is needed")
        try:
            try_folder(path.parent)
            if path.exists():
                path.open("ab").close()
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error
