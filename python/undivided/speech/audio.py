"""Sound from a file, as Whisper hears it: one channel, 16,000 samples a second."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

RATE = 16000


def read_audio(path: str | Path) -> Tensor:
    """float32 (samples,) in [-1, 1] at 16,000 a second; channels are averaged.

    WAV files of whole numbers are read by the standard library, everything else by soundfile.

    Raises:
        FileNotFoundError: it is not there.
        ImportError: it is no such WAV file and soundfile is not installed.
        ValueError: it is a WAV file that is damaged or has no samples.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        samples, rate = read_wav(str(path))
    except (wave.Error, EOFError) as error:
        samples, rate = _read_by_soundfile(path, error)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return resample(samples.mean(1), rate)


def resample(samples: Tensor, rate: int) -> Tensor:
    """float32 (samples,) at `rate` a second -> at 16,000, through the spectrum: what fits below 8 kHz is kept as it is.

    Raises:
        ValueError: the rate is below 1.
    """
    if rate < 1:
        raise ValueError(f"rate={rate} must be at least 1")
    count = round(samples.shape[0] * RATE / rate)
    if rate == RATE or count == 0:
        return samples[:count]
    spectrum = torch.fft.rfft(samples.double())
    return (torch.fft.irfft(spectrum[: count // 2 + 1], count) * (count / samples.shape[0])).float()


def read_wav(source: str | BinaryIO) -> tuple[Tensor, int]:
    """float32 (samples, channels) in [-1, 1] and their rate, of a WAV file of whole numbers: its path, or opened.

    Raises:
        wave.Error, EOFError: it is no such file.
        ValueError: it has no samples, a part of one, or no rate.
    """
    with wave.open(source, "rb") as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        content = bytearray(file.readframes(file.getnframes()))
    if rate < 1:
        raise ValueError(f"rate={rate} must be at least 1")
    if not content or len(content) % (width * channels):
        raise ValueError(f"{len(content)} bytes of samples; allowed: multiples of {width * channels} above 0")
    data = torch.frombuffer(content, dtype=torch.uint8)
    # 8 bits are unsigned, more are little-endian and signed.
    levels = data.view(-1, width).double() @ 256.0 ** torch.arange(width, dtype=torch.float64)
    half = 2.0 ** (8 * width - 1)
    levels = levels - half if width == 1 else torch.where(levels >= half, levels - 2 * half, levels)
    return (levels / half).float().view(-1, channels), rate


def _read_by_soundfile(path: Path, error: Exception) -> tuple[Tensor, int]:
    if importlib.util.find_spec("soundfile") is None:
        cure = "pip install soundfile, or convert it to a WAV file of 16-bit samples"
        raise ImportError(f"{path} cannot be read by the standard library ({error}): {cure}") from error
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples), rate
