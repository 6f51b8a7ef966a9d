"""Spoken digits: sound as symbols, strings that are others each epoch, and training and answering as a user does it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from task_files import TINY_PAIR, standing_in, tone, wav, write_spoken_digits
from undivided.cli import main
from undivided.speech.audio import read_audio
from undivided.tasks import TASKS, Example, from_header, pad, spoken_digits, to_header
from undivided.tasks.frames import BANDS, FRAMES, LEVELS, SLOT, Frames, slots, strengths
from undivided.training.batches import Batches, Examples
from undivided.training.frames import HIDDEN_BANDS, HIDDEN_FRAMES, FrameEmbedding, hidden
from undivided.training.renewed import Renewed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_spoken_digits) as patch:
        patch.setattr(spoken_digits, "STRINGS", 128)
        yield out


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A trained listener, for all tests that only read it."""
    out = tmp_path_factory.mktemp("spoken") / "run"
    options = ["--steps", "300", "--lr", "5e-3", "--evaluations", "2", "--ema", "0.9"]
    assert main(["train", "spoken_digits", "--out", str(out), *options, *TINY_PAIR]) == 0
    return out


def test_single_digits_and_strings_are_heard(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] > 80 and report["der"] < 40  # chance is 10, and 90 and more
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "CNN on MFCC, another split" in printed and "published figures are of single digits alone" in printed


def test_a_sound_file_is_answered(run, tmp_path, capsys):
    path, png = tmp_path / "said.wav", tmp_path / "map.png"
    path.write_bytes(wav(b"".join(tone(digit, 1.0, 0.16) for digit in (4, 1, 7))))
    capsys.readouterr()
    assert main(["generate", str(run), str(path), "--device", "cpu", "--png", str(png)]) == 0
    printed = capsys.readouterr().out
    assert f"{path}  4 1 7" in printed
    if "attention map" in printed:  # matplotlib is there
        assert png.stat().st_size > 1000


@pytest.mark.parametrize(("seconds", "text"), [(0.01, "has 0.01 s of sound"), (31, "has 31.00 s of sound")])
def test_a_sound_of_another_length_is_refused(seconds, text, tmp_path):
    path = tmp_path / "sound.wav"
    path.write_bytes(wav(bytes(2 * round(8000 * seconds))))
    with pytest.raises(ValueError, match=f"{text}; 0.05 to 30 s are allowed"):
        spoken_digits.sound(str(path))
    with pytest.raises(FileNotFoundError, match="nothing.wav is not there"):
        spoken_digits.sound("nothing.wav")


def test_the_published_split_is_kept(folder):
    clips = spoken_digits.read(folder / "free-spoken-digits" / "recordings.tar")
    assert len(clips) == 240
    data = TASKS["spoken_digits"].load(None)
    singles = [one for one in data.test if len(one.references[0]) == 1]
    strings = [one for one in data.test if len(one.references[0]) > 1]
    assert len(singles) == len({one.text for one in singles}) == 100  # five of every digit by each of two speakers
    assert all(numbers_of(one)[0] < 5 for one in singles)
    for one in strings:
        numbers = numbers_of(one)
        assert 3 <= len(numbers) <= 6 and max(numbers) < 5 and len(one.references[0]) == len(numbers)
    held = {one.source for one in (*data.test, *data.dev)}
    assert not held & {source for source, _ in data.train} and {5, 6, 7} == {
        numbers_of(one)[0] for one in data.dev if len(one.references[0]) == 1
    }
    # Every scored recording is in ROUNDS strings, but for the fewer than three that a round leaves over.
    used = sum(len(one.references[0]) for one in strings)
    assert 12 * (50 - 2) <= used <= 12 * 50


def numbers_of(one: Example) -> list[int]:
    """The numbers of its recordings."""
    return [int(name.split("_")[1]) for name in one.text.split()[1].split("+")]


def test_the_sound_of_a_string_is_that_of_its_parts(folder):
    clips = [c for c in spoken_digits.read(folder / "free-spoken-digits" / "recordings.tar") if c.speaker == "ann"][:3]
    joined, digits = spoken_digits.pair(clips)
    assert digits == tuple(clip.digit for clip in clips)
    count = sum(len(clip.frames) for clip in clips)
    assert len(joined) == -(-count // FRAMES)
    levels = Frames().encode(joined).view(-1, BANDS)
    assert levels.max() == LEVELS and (levels[count:] == 1).all()
    # A part that is no louder than the rest sounds the same alone and in a string.
    loudest = max(clips, key=lambda clip: clip.frames.max())
    alone = Frames().encode(slots(loudest.frames)).view(-1, BANDS)[: len(loudest.frames)]
    start = sum(len(clip.frames) for clip in clips[: clips.index(loudest)])
    assert torch.equal(levels[start : start + len(loudest.frames)], alone)


def test_loudness_does_not_matter_and_a_pitch_has_its_band(tmp_path):
    seconds = torch.arange(1600) / 16000
    samples = torch.sin(2 * torch.pi * 1000 * seconds)
    loud = slots(strengths(samples))
    assert loud == slots(strengths(samples / 16))
    middle = Frames().encode(loud)[1].view(FRAMES, BANDS).float().mean(0)
    # The bands are linear up to 1 kHz, 32 of them to 45.3 mel of Slaney's scale: 15 mel is the middle of the tenth.
    assert int(middle.argmax()) == round(15 / 45.3 * 33) - 1
    path = tmp_path / "tone.wav"
    path.write_bytes(wav(tone(3, 1.0, 0.2)))
    assert len(read_audio(path)) == 3200 and len(spoken_digits.sound(str(path))) == 5


def test_slots_go_into_numbers_and_bad_ones_are_refused():
    frames = Frames()
    symbols = tuple(chr(n) * SLOT for n in (1, 128, LEVELS))
    rows = frames.encode(symbols)
    assert rows.dtype == torch.uint8 and rows.shape == (3, SLOT) and rows[:, 0].tolist() == [1, 128, 255]
    assert frames.encode(()).shape == (0, SLOT) and frames.pieces(symbols) == ("0.00", "0.04", "0.08")
    for bad in ("\x01" * (SLOT - 1), "\0" * SLOT, "\u0100" * SLOT, ""):
        with pytest.raises(ValueError, match=f"is no slot: {SLOT} characters from 1 to 255"):
            frames.encode((bad,))
    assert type(from_header(json.loads(json.dumps(to_header(frames))))) is Frames


def test_padding_is_silent():
    torch.manual_seed(0)
    embedding = FrameEmbedding(16).eval()
    rows = [torch.randint(1, 256, (count, SLOT), dtype=torch.uint8) for count in (3, 7, 1)]
    padded, _ = pad(rows)
    batch = embedding(embedding.check("src", padded))
    assert batch.shape == (3, 7, 16)
    for number, row in enumerate(rows):
        torch.testing.assert_close(batch[number, : len(row)], embedding(row[None])[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"src has dtype torch.float32, expected torch.uint8 or torch.int64"):
        embedding.check("src", padded.float())
    with pytest.raises(ValueError, match=rf"src has shape \(3, 7, 95\), expected \(batch, seqlen, {SLOT}\)"):
        embedding.check("src", padded[:, :, 1:])


def test_a_listener_in_training_does_not_hear_everything():
    torch.manual_seed(1)
    frames = torch.full((64, 80, BANDS), 7, dtype=torch.uint8)
    gone = hidden(frames) != 7
    bands, times = gone.all(1), gone.all(2)
    assert int(bands.sum(1).max()) == HIDDEN_BANDS and int(times.sum(1).max()) == HIDDEN_FRAMES
    assert int(bands.sum(1).min()) == 0 and int(times.sum(1).min()) == 0
    for row in (*bands, *times):
        assert int(row.int().diff().abs().sum()) <= 2  # one stretch
    assert torch.equal(gone, bands[:, None, :] | times[:, :, None])
    embedding, src = FrameEmbedding(8), torch.randint(1, 256, (4, 10, SLOT))
    assert not torch.equal(embedding.train()(src), embedding(src))
    assert torch.equal(embedding.eval()(src), embedding(src))


def test_each_epoch_has_other_pairs_and_a_resumed_one_the_same():
    def pairs(epoch: int) -> list[tuple[list[int], list[int]]]:
        return [([10 * epoch + n + 3], [n + 3]) for n in range(5)]

    batches = Batches(Renewed(pairs, "cpu"), 2, seed=0)
    seen = [next(batches) for _ in range(6)]
    values = [sorted(n for batch in seen[i : i + 3] for n in batch.src.flatten().tolist()) for i in (0, 3)]
    assert values == [[3, 4, 5, 6, 7], [13, 14, 15, 16, 17]]
    again = Batches(Renewed(pairs, "cpu"), 2, seed=0)
    again.restore({"epoch": 1, "index": 1})
    assert torch.equal(next(again).src, seen[4].src)
    same = Examples(pairs(0), "cpu")
    assert same.at(3) is same


def test_the_strings_of_an_epoch_depend_on_its_number_alone(folder):
    data = TASKS["spoken_digits"].load(None)
    assert data.renewed(0) == data.train and data.renewed(1) == data.renewed(1) != data.train
    lengths = [{len(target) for _, target in data.renewed(epoch)} for epoch in (0, 3, 4, 20, 99)]
    assert lengths == [{1}, {1}, {1, 2}, {1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6}] and len(data.renewed(2)) == 128


def test_digits_are_scored_single_and_in_strings():
    outputs = [("1",), ("2", "2"), ("1", "2", "3"), ("4", "5")]
    references = [[("1",)], [("2",)], [("1", "2", "3")], [("4", "6", "5", "5")]]
    found = spoken_digits.digit_scores(outputs, references)
    assert found == {"accuracy": 50.0, "der": pytest.approx(100 * 2 / 7), "words": 4}
    with pytest.raises(ValueError, match="1 single digits and 0 strings were given"):
        spoken_digits.digit_scores([("1",)], [[("1",)]])


def test_missing_recordings_are_named_with_the_three_places(tmp_path, monkeypatch, capsys):
    def refuse(*args, **words):
        raise OSError("no network")

    monkeypatch.setenv("UNDIVIDED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("undivided.tasks.find.urllib.request.urlopen", refuse)
    assert main(["train", "spoken_digits", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert f"(1) {tmp_path} does not hold recordings.tar" in printed
    assert "(2) the cache" in printed and "(3) the download from https://github.com/Jakobovski" in printed
