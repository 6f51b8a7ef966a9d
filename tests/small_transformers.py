"""A small encoder-decoder and a batch for it."""

from __future__ import annotations

import torch

from undivided.transformer import Config, Transformer

VOCAB = 17


def small(**changes) -> Config:
    return Config(**{"src_vocab": VOCAB, "tgt_vocab": VOCAB, "d_model": 32, "nheads": 2, "d_ff": 48, **changes})


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(3, VOCAB, (3, 7), generator=generator)
    tgt = torch.randint(3, VOCAB, (3, 6), generator=generator)
    return src, tgt, torch.tensor([7, 3, 5], dtype=torch.int32)


def model(**changes) -> Transformer:
    torch.manual_seed(1)
    return Transformer(small(**changes)).eval()
