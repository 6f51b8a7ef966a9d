"""N to N and N to 1 by recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Config
from .sequence import Encoder


class TokenClassifier(nn.Module):
    """N to N: logits (batch, seqlen, tgt_vocab), a class for every token, from a network that reads both ways."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.encoder = config, Encoder(config, both_ways=True)
        self.dropout, self.classes = nn.Dropout(config.dropout), nn.Linear(config.d_model, config.tgt_vocab)

    def forward(self, src: Tensor, src_lengths: Tensor | None = None) -> Tensor:
        return self.classes(self.dropout(self.encoder(src, src_lengths)[0]))


class SequenceClassifier(nn.Module):
    """N to 1: logits (batch, tgt_vocab).

    From the mean over the symbols of a network that reads both ways; or, with pooling "last", from the last state of
    one that reads forward, through which all that it knows must pass.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.encoder = config, Encoder(config, both_ways=config.pooling == "mean")
        self.dropout, self.classes = nn.Dropout(config.dropout), nn.Linear(config.d_model, config.tgt_vocab)

    def forward(self, src: Tensor, src_lengths: Tensor | None = None) -> Tensor:
        outputs, state = self.encoder(src, src_lengths)  # outputs (batch, seqlen, d_model), 0 at padding
        if self.config.pooling == "last":
            return self.classes(self.dropout(state[0][:, -1]))
        if src_lengths is None:
            return self.classes(self.dropout(outputs.mean(1)))
        seen = torch.arange(outputs.shape[1], device=outputs.device) < src_lengths[:, None]
        total = torch.where(seen[..., None], outputs, 0.0).sum(1)
        return self.classes(self.dropout(total / src_lengths.clamp_min(1)[:, None].to(outputs.dtype)))
