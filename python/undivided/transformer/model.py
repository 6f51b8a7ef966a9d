"""The encoder-decoder transformer (Vaswani et al. 2017, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import Cache, Packing, unpack
from .blocks import DecoderBlock, EncoderBlock, Stack
from .captured import Captured
from .checks import check_lengths
from .config import Config
from .decoding import Decoding
from .generation import generate
from .padding import without_padding

Caches = list[tuple[Cache, Cache]]


class Encoder(Stack):
    """src (batch, seqlen_src) -> memory (batch, seqlen_src, d_model). A `causal` one makes no row of those after it."""

    def __init__(self, config: Config, causal: bool = False) -> None:
        blocks: list[nn.Module] = [EncoderBlock(config, causal) for _ in range(config.encoder_layers)]
        super().__init__(config, blocks, encoder=not causal)

    def forward(self, src: Tensor, src_lengths: Tensor | Packing | None = None) -> Tensor:
        check_lengths("src_lengths", src_lengths, self.embedding.check("src", src))
        if sides := without_padding(self, (src, src_lengths)):
            ((packed, packing),) = sides
            return unpack(self.forward(packed, packing), packing, src.shape[1])
        start = src_lengths if isinstance(src_lengths, Packing) else 0
        x = self.embed(src, start)
        for block in self.blocks:
            x = block(x, key_lengths=src_lengths, positions=self.positions, start=start)
        return self.norm(x)


class Decoder(Stack):
    """tgt (batch, seqlen_tgt) and the memory -> logits (batch, seqlen_tgt, tgt_vocab), by the config's head."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, [DecoderBlock(config) for _ in range(config.decoder_layers)], encoder=False)
        self.head = config.make_head()

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_lengths: Tensor | Packing | None = None,
        caches: Caches | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        self.embedding.check("tgt", tgt)
        start = packing or (caches[0][0].start(tgt.shape[1]) if caches else 0)
        x = self.embed(tgt, start)
        for index, block in enumerate(self.blocks):
            pair = caches[index] if caches else (None, None)
            x = block(x, memory, src_lengths, pair, positions=self.positions, start=start)
        return self.head(self.norm(x), self.embedding.weight)


class Transformer(nn.Module):
    """Sequence to sequence: `model(src, tgt, src_lengths=, tgt_lengths=)` gives logits.

    src, tgt: int64 (batch, seqlen), padded on the right; tgt starts with the begin symbol. src_lengths: int32 (batch,).
    Or both are what `undivided.nn.pack` gives, (1, total), with their packings as lengths: the same logits, without
    those of the padding, (1, total_tgt, tgt_vocab).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.shared:
            self.decoder.embedding = self.encoder.embedding

    @classmethod
    def from_huggingface(cls, model_or_path: Any) -> Transformer:
        """The same model from the transformers library; see `undivided.transformer.huggingface.from_huggingface`."""
        from .huggingface import from_huggingface

        return from_huggingface(model_or_path)

    def to_huggingface(self, config: Any = None) -> Any:
        """The same model for the transformers library; see `undivided.transformer.huggingface.to_huggingface`."""
        from .huggingface import to_huggingface

        return to_huggingface(self, config)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_lengths: Tensor | Packing | None = None,
        tgt_lengths: Tensor | Packing | None = None,
    ) -> Tensor:
        """Logits (batch, seqlen_tgt, tgt_vocab). A padded causal decoder needs no tgt_lengths: padding comes last.

        With them a CPU leaves the padding out; see `undivided.transformer.keep_padding`.

        Raises:
            ValueError, TypeError: a shape or dtype that does not fit, or one of the two is packed and the other not.
        """
        check_lengths("src_lengths", src_lengths, self.encoder.embedding.check("src", src))
        check_lengths("tgt_lengths", tgt_lengths, self.decoder.embedding.check("tgt", tgt))
        packing = tgt_lengths if isinstance(tgt_lengths, Packing) else None
        if isinstance(src_lengths, Packing) != (packing is not None):
            raise TypeError("src and tgt must both be packed, with their packings as src_lengths and tgt_lengths")
        if sides := without_padding(self, (src, src_lengths), (tgt, tgt_lengths)):
            (packed, sources), (read, targets) = sides
            return unpack(self.forward(packed, read, sources, targets), targets, tgt.shape[1])
        return self.decoder(tgt, self.encoder(src, src_lengths), src_lengths, packing=packing)

    @torch.no_grad()
    def start(
        self, src: Tensor, src_lengths: Tensor | None = None, longest: int = 64, *, cuda_graph: bool = False
    ) -> Decoding:
        """The state of decoding at most `longest` symbols for each source.

        cuda_graph: a step is recorded once and then replayed in one launch.

        Raises:
            ValueError: cuda_graph is asked for on another device than a GPU, of a model in training mode, or for more
                positions than there are.
        """
        captured = Captured(self.decoder, longest, src.device) if cuda_graph else None
        memory = self.encoder(src, src_lengths)
        caches = [
            (Cache(longest, on_device=cuda_graph), Cache(memory.shape[1], of_source=True)) for _ in self.decoder.blocks
        ]

        def step(ids: Tensor, kept: Decoding) -> Tensor:
            return self.decoder(ids, kept.tensors["memory"], kept.tensors.get("src_lengths"), caches)[:, -1]

        # A selection may change the lengths in place, and they are the caller's.
        tensors = {"memory": memory} | ({} if src_lengths is None else {"src_lengths": src_lengths.clone()})
        every = [cache for pair in caches for cache in pair]
        return Decoding(step, every, tensors, src.shape[0], src.device, captured)

    def generate(
        self,
        src: Tensor,
        src_lengths: Tensor | None = None,
        max_length: int = 64,
        *,
        prompt: Tensor | None = None,
        cuda_graph: bool = False,
        **search: Any,
    ) -> Tensor:
        """Ids (batch, n), n <= max_length, without begin; see `undivided.transformer.generation.generate`, and `start`
        for cuda_graph."""
        longest = max_length + (1 if prompt is None else prompt.shape[1]) - 1  # the last symbol is not read
        decoding = self.start(src, src_lengths, longest, cuda_graph=cuda_graph)
        return generate(decoding, max_length, prompt=prompt, symbols=self.config.symbols, **search)

    @torch.no_grad()
    def cross_attention(self, src: Tensor, tgt: Tensor, src_lengths: Tensor | None = None) -> list[Tensor]:
        """Per decoder block, what each target position looks at: (batch, nheads, seqlen_tgt, seqlen_src)."""
        memory, positions = self.encoder(src, src_lengths), self.decoder.positions
        x, maps = self.decoder.embed(self.decoder.embedding.check("tgt", tgt)), []
        for block in self.decoder.blocks:
            assert isinstance(block, DecoderBlock)
            seen: list[Tensor] = []
            hook = block.cross.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            x = block(x, memory, src_lengths, positions=positions, start=0)
            hook.remove()
            maps.append(block.cross.weights(seen[0], memory, positions=positions, key_lengths=src_lengths))
        return maps
