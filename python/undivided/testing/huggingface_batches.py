"""Padded batches for the tiny transformers models: text, sound and pictures."""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY = 64
IMAGE_TOKEN = VOCABULARY - 1
SOURCE, TARGET = (11, 6, 9), (7, 5, 4)  # valid tokens of each row: nothing is a multiple of a vector


def tokens(lengths: tuple[int, ...], left: bool = False) -> tuple[Tensor, Tensor]:
    """(ids, mask), padded on the right or the left."""
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=torch.Generator().manual_seed(3))
    places = torch.arange(longest)
    valid = torch.stack([(places >= longest - n) if left else (places < n) for n in lengths])
    return ids * valid, valid.long()


def text_to_text() -> dict[str, Tensor]:
    (ids, mask), (target, target_mask) = tokens(SOURCE), tokens(TARGET)
    return dict(input_ids=ids, attention_mask=mask, decoder_input_ids=target, decoder_attention_mask=target_mask)


def text() -> dict[str, Tensor]:
    ids, mask = tokens(SOURCE)
    return dict(input_ids=ids, attention_mask=mask)


def text_left() -> dict[str, Tensor]:
    ids, mask = tokens(SOURCE, left=True)
    return dict(input_ids=ids, attention_mask=mask)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def mel() -> dict[str, Tensor]:
    target, mask = tokens(TARGET)
    return dict(input_features=noise(3, 8, 40), decoder_input_ids=target, decoder_attention_mask=mask)


def frames() -> dict[str, Tensor]:
    target, mask = tokens(TARGET)
    valid = (torch.arange(40) < torch.tensor([40, 23, 31])[:, None]).long()
    words = dict(input_features=noise(3, 40, 8), attention_mask=valid)
    return dict(**words, decoder_input_ids=target, decoder_attention_mask=mask)


def audio() -> dict[str, Tensor]:
    target, mask = tokens(TARGET)
    valid = (torch.arange(6000) < torch.tensor([6000, 3500, 4700])[:, None]).long()
    words = dict(input_values=noise(3, 6000), attention_mask=valid)
    return dict(**words, decoder_input_ids=target, decoder_attention_mask=mask)


def image() -> dict[str, Tensor]:
    return dict(pixel_values=noise(3, 3, 16, 16))


def image_to_text() -> dict[str, Tensor]:
    target, mask = tokens(TARGET)
    return dict(**image(), decoder_input_ids=target, decoder_attention_mask=mask)


def picture_and_text() -> dict[str, Tensor]:
    """Each picture is 17 tokens, 16 places and their mean, before the text."""
    (ids, mask), (target, target_mask) = tokens(SOURCE), tokens(TARGET)
    pictures = torch.full((len(SOURCE), 17), IMAGE_TOKEN)
    ids = torch.cat((pictures, torch.where(ids == IMAGE_TOKEN, 5, ids)), 1)
    mask = torch.cat((torch.ones_like(pictures), mask), 1)
    words = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=target, decoder_attention_mask=target_mask)
    return dict(pixel_values=noise(len(SOURCE), 3, 32, 32), **words)
