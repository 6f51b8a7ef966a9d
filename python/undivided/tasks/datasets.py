"""The table of datasets: where each comes from, what its files hash to, and under which licence it is published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset. It is also accepted xz-compressed, with `.xz` added to its name.

    `sha256` and `size` (bytes) are those of the uncompressed content, so every way of getting it is checked alike.
    """

    name: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Dataset:
    """A row of the table. `name` is also the folder that is looked for below the user's data folder."""

    name: str
    summary: str
    task: str
    origin: str
    licence: str
    files: tuple[DataFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files, uncompressed."""
        return sum(file.size for file in self.files)


_JG2P = "https://raw.githubusercontent.com/steveash/jg2p/9ef911031f2762b15f5b731c33dd968f523e181f"

CMUDICT = Dataset(
    name="cmudict-g014b2b",
    summary="English words and their pronunciations, the split that papers report on: 106,837 / 12,000 words",
    task="g2p",
    origin="https://github.com/steveash/jg2p (jg2p-core/src/test/resources)",
    licence="CMU Pronouncing Dictionary, (c) 1993-2015 Carnegie Mellon University, BSD-style, keep the notice",
    files=(
        DataFile(
            name="g014b2b.train",
            url=f"{_JG2P}/jg2p-core/src/test/resources/g014b2b.train",
            sha256="5882433c3a14a9a0614b5f724ce74872851092e816852c82d6b74913b2085384",
            size=2_717_073,
        ),
        DataFile(
            name="g014b2b.test",
            url=f"{_JG2P}/jg2p-core/src/test/resources/g014b2b.test",
            sha256="9beeeed7726f4954bee1dbb3c5b41f50a71227557eca70b259fbd63c9cad1bb9",
            size=306_441,
        ),
    ),
)

DATASETS: dict[str, Dataset] = {row.name: row for row in (CMUDICT,)}


def dataset(name: str) -> Dataset:
    """The row called `name`, or the one that the task `name` uses.

    Raises:
        ValueError: no such row; the text lists the names.
    """
    for row in DATASETS.values():
        if name in (row.name, row.task):
            return row
    raise ValueError(f"no dataset is called {name!r}; allowed: {', '.join(DATASETS)}")
