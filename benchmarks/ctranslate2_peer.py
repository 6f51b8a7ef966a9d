"""CTranslate2, generating with the same weights. It searches for its own symbols, which is the same work a step; what
is checked are its log-probabilities after the symbols that everybody else is fed."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .op import Absent, Apart, Provider, Runnable
from .peers import optional, refuse

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # the ids of padding, begin and end in every vocabulary of the tasks
LONGEST = 512  # positions that are stored


def provider(device: str) -> Provider | Absent:
    return optional("ctranslate2", "ctranslate2", ["ctranslate2"], device, device, make)


def make(case: Any, device: str) -> Any:
    refuse(case, f"{case.dtype} weights on a CPU", case.dtype != "float32" and device == "cpu")
    return Translator(device, case.dtype)


class Translator:
    """`bind` has the arguments of `generation.bind`, without the implementation."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device, self.dtype = device, dtype

    def bind(self, model: nn.Module, src: Tensor, src_lengths: Tensor, symbols: Tensor) -> Runnable:
        engine = self.load(model)
        source = [[word(i) for i in row[:n]] for row, n in zip(src.tolist(), src_lengths.tolist(), strict=True)]
        count = symbols.shape[1]
        longest = dict(beam_size=1, max_decoding_length=count, min_decoding_length=count)

        def run() -> Sequence[Tensor]:
            engine.translate_batch(source, **longest)
            return ()

        def check() -> Sequence[Tensor]:
            return (torch.stack([self.after(engine, source, symbols[:, 1:n]) for n in range(1, count + 1)], 1),)

        return Apart(run, check)

    def after(self, engine: Any, source: list[list[str]], fed: Tensor) -> Tensor:
        """Log-probabilities (batch, vocabulary) of the symbol after begin and `fed` (batch, n)."""
        prefix = [[word(i) for i in row] for row in fed.tolist()]
        count = fed.shape[1] + 1
        # A least length would hide the logit of the end symbol.
        words = dict(beam_size=1, max_decoding_length=count, min_decoding_length=0, return_logits_vocab=True)
        results = engine.translate_batch(source, target_prefix=prefix, **words)
        return torch.stack([torch.as_tensor(numpy.array(one.logits[0][-1])) for one in results]).to(self.device)

    def load(self, model: nn.Module) -> Any:
        package = importlib.import_module("ctranslate2")
        spec = specification(package, model)
        with tempfile.TemporaryDirectory() as folder:
            spec.validate()
            spec.optimize(quantization=None)
            spec.save(folder)
            threads = torch.get_num_threads()
            return package.Translator(folder, self.device, compute_type=self.dtype, intra_threads=threads)


def word(identity: int) -> str:
    return SPECIAL[identity] if identity < len(SPECIAL) else str(identity)


def specification(package: Any, model: Any) -> Any:
    """The model's weights under CTranslate2's names."""
    config = model.config
    activation = package.specs.common_spec.Activation.GELU
    assert (config.activation, config.norm, config.positions) == ("gelu", "pre-layer", "sinusoidal")
    layers = (config.encoder_layers, config.decoder_layers)
    spec = package.specs.TransformerSpec.from_config(layers, config.nheads, pre_norm=True, activation=activation)
    spec.config.decoder_start_token = "<s>"
    spec.config.add_source_bos = spec.config.add_source_eos = False
    fill_stack(spec.encoder, spec.encoder.embeddings[0], model.encoder)
    fill_stack(spec.decoder, spec.decoder.embeddings, model.decoder)
    spec.decoder.projection.weight = array(model.decoder.embedding.weight)
    spec.register_source_vocabulary([word(i) for i in range(config.src_vocab)])
    spec.register_target_vocabulary([word(i) for i in range(config.tgt_vocab)])
    return spec


def fill_stack(spec: Any, embeddings: Any, stack: Any) -> None:
    from undivided.reference import sinusoidal

    embeddings.weight = array(stack.embedding.weight)
    embeddings.multiply_by_sqrt_depth = True
    spec.scale_embeddings = True
    spec.position_encodings.encodings = array(sinusoidal(LONGEST, stack.embedding.weight.shape[1]))
    fill_norm(spec.layer_norm, stack.norm)
    for layer, block in zip(spec.layer, stack.blocks, strict=True):
        norms = [residual.norm for residual in block.residuals]
        own = layer.self_attention
        fill_norm(own.layer_norm, norms[0])
        own.linear[0].weight = array(torch.cat([block.attention.q.weight, block.attention.kv.weight]))
        own.linear[1].weight = array(block.attention.out.weight)
        if hasattr(block, "cross"):
            fill_norm(layer.attention.layer_norm, norms[1])
            for linear, part in zip(layer.attention.linear, ("q", "kv", "out"), strict=True):
                linear.weight = array(getattr(block.cross, part).weight)
        fill_norm(layer.ffn.layer_norm, norms[-1])
        for linear, part in (
            (layer.ffn.linear_0, block.feed_forward.w_in),
            (layer.ffn.linear_1, block.feed_forward.w_out),
        ):
            linear.weight, linear.bias = array(part.weight), array(part.bias)


def fill_norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = array(norm.weight), array(norm.bias)


def array(weight: Tensor) -> Any:
    return weight.detach().float().cpu().numpy()
