"""What a model without cross attention looks at: maps of its self-attention."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from task_files import write_all
from undivided.cli import main
from undivided.nn import MultiHeadAttention
from undivided.nn.positions import POSITIONS, make_positions
from undivided.training import train
from undivided.training.maps import self_attention

SMALL = {"d_model": 16, "d_ff": 16, "nheads": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_all(tmp_path / "data", monkeypatch)
    monkeypatch.setenv("UNDIVIDED_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNDIVIDED_CACHE", str(tmp_path / "cache"))
    yield tmp_path


def test_self_attention_is_drawn_where_no_sequence_is_written(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tagger = tmp_path / "tagger"
    saved = train("pos", tagger, steps=1, evaluations=1, options=SMALL, quiet=True, device="cpu")
    words = ("bdfkling", "gtrbdly", "kkness")
    weights = self_attention(saved, words)
    assert weights.shape == (3, 3) and weights.sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    command = ["generate", str(tagger), " ".join(words), "--device", "cpu"]
    assert main(command) == 0 and not (tmp_path / "attention.png").exists()
    assert main([*command, "--png", "maps.png"]) == 0
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert "attention map: maps.png" in capsys.readouterr().out
    run, options = tmp_path / "run", {"d_model": 16, "layers": 1}
    judge = train("sentiment", run, model="gru", steps=1, evaluations=1, options=options, quiet=True)
    assert main(["generate", str(run), "a film", "--png", "none.png", "--device", "cpu"]) == 0
    assert "no map is drawn: model gru has no attention" in capsys.readouterr().out
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(ValueError, match="model='gru' has no attention"):
        self_attention(judge, ("a", "film"))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_map_is_what_attention_weighs_its_values_with(positions, causal):
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 2)
    place = make_positions(positions, 16, 2, bidirectional=not causal)
    x = torch.randn(2, 5, 16)
    weights = layer.weights(x, positions=place, causal=causal)
    v = layer.kv(x).unflatten(-1, (2, 2, 8))[:, :, 1]
    out = layer.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
    torch.testing.assert_close(out, layer(x, positions=place, causal=causal), atol=1e-5, rtol=1e-4)
