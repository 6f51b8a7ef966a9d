"""Archives as plain dictionaries of their files, however they were packed."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile


def members(content: bytes) -> dict[str, bytes]:
    """{path: content} of every file in a zip or tar archive (gzip, bzip2 and xz too), in order of path.

    Raises:
        ValueError: it is neither, or is damaged.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found = {one.filename: archive.read(one) for one in archive.infolist() if not one.is_dir()}
        else:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                files = ((one, tar.extractfile(one)) for one in tar if one.isfile())
                found = {one.name.removeprefix("./"): file.read() for one, file in files if file is not None}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"not a whole zip or tar archive: {error}") from error
    return dict(sorted(found.items()))


def members_digest(content: bytes) -> str:
    """sha256 of the names and contents of an archive's files: the same whoever packed them, and how."""
    whole = hashlib.sha256()
    for name, data in members(content).items():
        whole.update(f"{name}\0{len(data)}\0".encode())
        whole.update(data)
    return whole.hexdigest()


def repack(content: bytes, folder: str, into: str = "") -> bytes:
    """A plain tar of the files that an archive holds below `folder`, their paths relative to it and behind `into`.

    Raises:
        ValueError: there are none, or it is no archive.
    """
    prefix = folder.rstrip("/") + "/"
    chosen = {name.removeprefix(prefix): data for name, data in members(content).items() if name.startswith(prefix)}
    if not chosen:
        raise ValueError(f"the archive has no files below {prefix}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in chosen.items():
            entry = tarfile.TarInfo(into + name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
