"""Random transformers models in the sizes that people run, the batches they get, and what must be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import lengths
from .counts import decoder_operations, encoder_operations

# Symbols from FIRST on are text. Generation knows none that ends it, so that all do the same work.
PAD, FIRST = 0, 4
SYMBOLS = dict(pad_token_id=PAD, bos_token_id=1, decoder_start_token_id=1, eos_token_id=2)


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder-decoder of `layers` + `layers`.

    vocab: symbols, the published number unless a case's name says another. mel: channels of the sound Whisper hears.
    """

    d_model: int
    layers: int
    nheads: int
    d_ff: int
    vocab: int
    mel: int = 0


SHAPES = {
    "t5-small": Shape(512, 6, 8, 2048, 32128),
    "bart-base": Shape(768, 6, 12, 3072, 50265),
    "whisper-tiny.en": Shape(384, 4, 6, 1536, 51864, mel=80),
    "t5-tiny": Shape(64, 1, 2, 128, 256),
    "bart-tiny": Shape(64, 1, 2, 128, 256),
    "whisper-tiny": Shape(64, 1, 2, 128, 256, mel=80),
}


def make(kind: str, shape: Shape, attn_implementation: str, dropout: float = 0.0) -> nn.Module:
    """kind: t5, bart or whisper. The same float32 weights at every call, in evaluation mode.

    Raises: ImportError without transformers.
    """
    import transformers

    words: dict[str, Any] = dict(vocab_size=shape.vocab, d_model=shape.d_model, **SYMBOLS)
    if kind == "t5":
        sizes = dict(num_layers=shape.layers, num_heads=shape.nheads, d_ff=shape.d_ff)
        config: Any = transformers.T5Config(**words, **sizes, d_kv=shape.d_model // shape.nheads, dropout_rate=dropout)
        model_class: Any = transformers.T5ForConditionalGeneration
    else:
        for side in ("encoder", "decoder"):
            words |= {f"{side}_layers": shape.layers, f"{side}_attention_heads": shape.nheads}
            words |= {f"{side}_ffn_dim": shape.d_ff, "dropout": dropout}
        if kind == "bart":
            config = transformers.BartConfig(**words, max_position_embeddings=2048)
            model_class = transformers.BartForConditionalGeneration
        else:
            config = transformers.WhisperConfig(**words, num_mel_bins=shape.mel)
            model_class = transformers.WhisperForConditionalGeneration
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = model_class._from_config(config, attn_implementation=attn_implementation)
    settings = model.generation_config
    settings.eos_token_id = settings.forced_eos_token_id = None
    settings.suppress_tokens = settings.begin_suppress_tokens = None
    return model.eval()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Batch:
    """What goes into a model, by its argument names, and the lengths of both sides that are no padding."""

    inputs: dict[str, Tensor]
    src: Sequence[int]
    tgt: Sequence[int]


def draw(counts: Sequence[int], vocab: int, padding: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(ids, mask) int64 (len(counts), max(counts)), padded on the right."""
    ids = torch.randint(FIRST, vocab, (len(counts), max(counts)), generator=generator)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return ids.masked_fill(~mask, padding), mask.long()


def text(source: str, batch: int, vocab: int, device: str) -> Batch:
    """Sources of the lengths called `source`; targets of a verse's. As a collator gives them: labels of padding are
    -100, and no mask for the decoder."""
    generator = torch.Generator().manual_seed(1)
    src, tgt = lengths.batch(source, batch), lengths.batch("plain verses", batch)
    ids, mask = draw(src, vocab, PAD, generator)
    labels, _ = draw(tgt, vocab, -100, generator)
    inputs = dict(input_ids=ids, attention_mask=mask, labels=labels)
    return Batch({name: value.to(device) for name, value in inputs.items()}, src, tgt)


def sound(batch: int, channels: int, device: str) -> Batch:
    """Half a minute each of log-mel features, which is what Whisper always hears: 1500 positions after convolution."""
    features = torch.randn(batch, channels, 3000, generator=torch.Generator().manual_seed(1))
    return Batch({"input_features": features.to(device)}, (1500,) * batch, (0,) * batch)


def operations(shape: Shape, src: Sequence[int], tgt: Sequence[int]) -> tuple[float, float]:
    """(matmuls, attention) of one forward pass over these lengths, the projection to symbols included."""
    matmuls = attention = 0.0
    for a, b in zip(src, tgt, strict=True):
        counted: Callable[..., tuple[float, float]]
        for counted, sizes in ((encoder_operations, (a,)), (decoder_operations, (b, a))):
            found = counted(*sizes, shape.d_model, shape.d_ff)
            matmuls, attention = matmuls + shape.layers * found[0], attention + shape.layers * found[1]
        matmuls += 2.0 * b * shape.d_model * shape.vocab
    return matmuls, attention


def weights(shape: Shape) -> int:
    """Of the layers and the table of symbols."""
    return shape.layers * (12 * shape.d_model**2 + 4 * shape.d_model * shape.d_ff) + shape.vocab * shape.d_model
