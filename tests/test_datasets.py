"""Finding data: the order of places, the checks, and what is said when all of them fail."""

import dataclasses
import gzip
import hashlib
import http.server
import lzma
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from undivided import cli
from undivided.commands import data as data_command
from undivided.environment import cache_folder, data_folder
from undivided.tasks import TASKS, g2p_languages
from undivided.tasks import find as find_module
from undivided.tasks.datasets import CMUDICT, DATASETS, DataFile, Dataset, dataset
from undivided.tasks.find import DataDamaged, DataNotFound, fetch, find, read_text

TEXT = "A\tAH\n"


def row(url: str, text: str = TEXT, name: str = "words.train") -> Dataset:
    content = text.encode()
    file = DataFile(name, f"{url}/{name}", hashlib.sha256(content).hexdigest(), len(content))
    return Dataset("tiny", "a word", "g2p", url, "public domain, made by this test", (file,))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user's folder, cache and origin."""
    monkeypatch.setenv("UNDIVIDED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNDIVIDED_DATA", raising=False)
    (tmp_path / "user").mkdir()
    (tmp_path / "origin").mkdir()
    return tmp_path


@pytest.fixture
def origin(places: Path):
    """A server of the folder `origin`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = partial(Quiet, directory=str(places / "origin"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("below", ["", "tiny"])
def test_the_folder_may_hold_the_files_or_a_folder_of_the_dataset(places: Path, below: str) -> None:
    place = places / "user" / below
    place.mkdir(exist_ok=True)
    (place / "words.train").write_text(TEXT)
    assert find(row("http://127.0.0.1:9"), places / "user")["words.train"] == place / "words.train"


def test_a_compressed_file_is_checked_and_read_by_its_content(places: Path) -> None:
    (places / "user" / "words.train.xz").write_bytes(lzma.compress(TEXT.encode()))
    path = find(row("http://127.0.0.1:9"), places / "user")["words.train"]
    assert path.suffix == ".xz" and read_text(path) == TEXT


def test_the_variable_names_the_folder_and_the_option_goes_first(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "user" / "words.train").write_text(TEXT)
    monkeypatch.setenv("UNDIVIDED_DATA", str(places / "user"))
    assert find(row("http://127.0.0.1:9"))["words.train"].parent == places / "user"
    with pytest.raises(DataNotFound, match="elsewhere does not hold"):
        find(row("http://127.0.0.1:9"), places / "elsewhere", download=False)


@pytest.mark.parametrize(("name", "read"), [("UNDIVIDED_DATA", data_folder), ("UNDIVIDED_CACHE", cache_folder)])
def test_a_variable_with_an_unknown_home_is_named(name: str, read: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~nobody-of-this-name/x")
    with pytest.raises(ValueError, match=f"{name}='~nobody-of-this-name/x' begins with a home that is not there"):
        read()
    monkeypatch.setenv(name, "~/x")
    assert read() == Path.home() / "x"


def test_a_download_is_checked_kept_in_the_cache_and_announced(
    places: Path, origin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (places / "origin" / "words.train").write_text(TEXT)
    wanted = row(origin)
    path = find(wanted)["words.train"]
    assert path == places / "cache" / "tiny" / "words.train" and path.read_text() == TEXT
    assert "made by this test" in capsys.readouterr().err
    (places / "origin" / "words.train").unlink()
    assert find(wanted)["words.train"] == path


def test_a_changed_download_is_refused_and_leaves_nothing(places: Path, origin: str) -> None:
    (places / "origin" / "words.train").write_text("B\tB IY\n")
    with pytest.raises(DataDamaged, match="the table has"):
        fetch(row(origin), places / "cache" / "tiny")
    assert list((places / "cache" / "tiny").iterdir()) == []


def test_a_damaged_file_is_named_and_not_skipped(places: Path) -> None:
    (places / "user" / "words.train").write_text("B\tB IY\n")
    with pytest.raises(DataDamaged, match=r"words\.train has sha256 [0-9a-f]{64}, the published file has"):
        find(row("http://127.0.0.1:9"), places / "user")
    (places / "user" / "words.train").unlink()
    (places / "user" / "words.train.xz").write_bytes(lzma.compress(TEXT.encode())[:-9])
    with pytest.raises(DataDamaged, match="not a whole xz file"):
        find(row("http://127.0.0.1:9"), places / "user")


def test_the_error_names_all_places(places: Path, origin: str) -> None:
    with pytest.raises(DataNotFound) as caught:
        find(row(origin), places / "user")
    text = str(caught.value)
    assert f"(1) {places / 'user'} does not hold words.train[.xz]" in text
    assert f"(2) the cache {places / 'cache' / 'tiny'}" in text
    assert f"(3) the download from {origin} failed: HTTP Error 404" in text
    assert "\n" not in text and isinstance(caught.value, FileNotFoundError)
    with pytest.raises(DataNotFound, match=r"\(1\) no folder was named \(--data DIR.*UNDIVIDED_DATA"):
        find(row(origin))


def test_a_partly_filled_folder_is_not_enough(places: Path) -> None:
    two = row("http://127.0.0.1:9")
    two = dataclasses.replace(two, files=(*two.files, dataclasses.replace(two.files[0], name="words.test")))
    (places / "user" / "words.train").write_text(TEXT)
    with pytest.raises(DataNotFound):
        find(two, places / "user", download=False)


def test_the_table_is_whole() -> None:
    for name, one in DATASETS.items():
        assert name == one.name and one.licence and one.origin.startswith("https://")
        assert all(len(file.sha256) == 64 and file.url.startswith("https://") and file.size for file in one.files)
    assert dataset("g2p") is CMUDICT
    with pytest.raises(ValueError, match="'nothing'; allowed: cmudict-g014b2b"):
        dataset("nothing")


@pytest.mark.parametrize("name", [*TASKS, *DATASETS])
def test_the_command_fetches_by_the_name_of_a_dataset_or_of_any_task(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_command, "find", lambda row, data: {row.name: Path("here")})
    assert cli.main(["data", "fetch", name]) == 0
    assert f"{TASKS[name].dataset if name in TASKS else name}: here\n" in capsys.readouterr().out


def test_downloads_time_out(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < find_module.TIMEOUT_SECONDS <= 60
    monkeypatch.setattr(find_module, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        hang_up = threading.Timer(5, silent.close)
        hang_up.start()
        with pytest.raises(OSError, match="timed out"):
            fetch(row(f"http://127.0.0.1:{silent.getsockname()[1]}"), places / "cache" / "tiny")
        hang_up.cancel()


def test_a_package_that_comes_with_the_files_is_looked_into_and_named(
    places: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = dataclasses.replace(row(origin), package=("words-of-pip", "words_of_pip", "data/words"))
    with pytest.raises(DataNotFound, match=r"\(3\) the package words-of-pip, .* \(pip install words-of-pip\); \(4\)"):
        find(wanted)
    inside = places / "site" / "words_of_pip" / "data" / "words"
    inside.mkdir(parents=True)
    (places / "site" / "words_of_pip" / "__init__.py").write_text("raise ImportError('needs not be imported')")
    (inside / "words.train.gz").write_bytes(gzip.compress(TEXT.encode()))
    monkeypatch.syspath_prepend(places / "site")
    path = find(wanted)["words.train"]
    assert path == inside / "words.train.gz" and read_text(path) == TEXT
    path.write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(DataDamaged, match="not a whole gz file"):
        find(wanted)


def test_what_is_served_in_another_form_is_converted_and_checked(places: Path, origin: str) -> None:
    plain = row(origin)
    file = dataclasses.replace(plain.files[0], url=f"{origin}/words.gz", convert=gzip.decompress)
    wanted = dataclasses.replace(plain, files=(file,))
    (places / "origin" / "words.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert find(wanted)["words.train"].read_text() == TEXT
    (places / "origin" / "words.gz").write_bytes(b"a page that says that there is nothing")
    with pytest.raises(DataDamaged, match="words.gz gave 38 bytes that cannot be read"):
        fetch(wanted, places / "cache" / "other")
    assert list((places / "cache" / "other").iterdir()) == []


@pytest.mark.skipif(data_folder() is None, reason="UNDIVIDED_DATA names no folder with the published sets")
def test_the_published_sets_have_the_published_sizes():
    data = {name: TASKS[name].load(None) for name in ("pos", "sentiment", "g2p_medium", "g2p_khm")}
    sizes = {name: (len(one.train), len(one.dev), len(one.test)) for name, one in data.items()}
    assert sizes["pos"] == (12_544, 2_001, 2_077)
    assert sum(sizes["sentiment"]) == 10_662 and 1_000 < sizes["sentiment"][2] < 1_130
    assert sizes["g2p_medium"] == (80_000, 10_000, 10_000) and sizes["g2p_khm"] == (800, 100, 100)
    assert data["g2p_medium"].source.symbols == data["g2p_khm"].source.symbols
    assert {one.text.split()[0] for one in data["g2p_medium"].dev[:10]} == set(g2p_languages.MEDIUM)
