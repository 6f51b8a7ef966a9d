"""From the transformers library and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from ..model import Transformer
from .bart import M2M100, Bart, Marian, MBart
from .family import Family
from .t5 import MT5, T5
from .weights import copy_weights
from .whisper import Whisper

# By the library's name of the kind of model. NLLB's is that of M2M100.
FAMILIES: dict[str, type[Family]] = {
    "t5": T5,
    "mt5": MT5,
    "bart": Bart,
    "mbart": MBart,
    "marian": Marian,
    "m2m_100": M2M100,
    "whisper": Whisper,
}


def from_huggingface(model_or_path: Any) -> Transformer:
    """A model of the transformers library as ours, with the same weights, dtype, device and mode.

    In evaluation its logits are those of the original up to rounding, `generate` gives the same symbols greedily and in
    a beam search (with `adjust=` for logits processors, of which some published models ask for several). In training
    only the dropout of sublayers and embeddings is taken over, not that of attention weights and inside feed-forward
    networks.

    Args:
        model_or_path: T5ForConditionalGeneration, MT5ForConditionalGeneration, BartForConditionalGeneration,
            MBartForConditionalGeneration, MarianMTModel, M2M100ForConditionalGeneration (NLLB too) or
            WhisperForConditionalGeneration; or what its `from_pretrained` takes, a folder or a name.

    Raises:
        TypeError: it is another class of model.
        ValueError: it has a variant that is not supported, or weights of several dtypes; the text gives the value and
            what is allowed.
        ImportError: a path is given and transformers is not installed.
    """
    model = _load(model_or_path) if isinstance(model_or_path, (str, Path)) else model_or_path
    family = _family(model)
    if len(dtypes := {str(weight.dtype) for weight in model.parameters()}) > 1:
        raise ValueError(f"the weights have dtypes {', '.join(sorted(dtypes))}; allowed: one, by model.to(dtype)")
    config = family.read(model)
    made = Transformer(config).to(model.device, model.dtype)
    copy_weights(made, model.state_dict(), config.names(), config.COMPUTED, to_ours=True)
    return made.train(model.training)


def to_huggingface(model: Transformer, config: Any = None) -> nn.Module:
    """A model of one of the `FAMILIES` as the transformers library's, with the same weights, dtype, device and mode.

    Args:
        config: the library's config of the model; by default one with the sizes, variants and symbols that ours has.
            Give that of the original to keep what it says beyond these.

    Raises:
        TypeError: the model's config is of no family.
        ValueError: `config` says something else than the model's.
        ImportError: transformers is not installed.
    """
    ours = model.config
    if not isinstance(ours, Family):
        allowed = ", ".join(family.__name__ for family in FAMILIES.values())
        raise TypeError(f"a model made from {type(ours).__name__} has no counterpart there; allowed: {allowed}")
    kind = getattr(_transformers(), ours.MODEL)
    made = kind(kind.config_class(**ours.write()) if config is None else copy.deepcopy(config))
    table = made.get_parameter(ours.EMBEDDINGS[1])
    made.get_output_embeddings().weight = table if ours.tied else nn.Parameter(table.detach().clone())
    found = type(ours).read(made)
    if found != ours:
        raise ValueError(f"the config says {found}, the model is {ours}")
    weight = next(model.parameters())
    made = made.to(weight.device, weight.dtype)
    copy_weights(model, made.state_dict(), ours.names(), ours.COMPUTED, to_ours=False)
    return made.train(model.training)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("transformers is not installed: pip install 'undivided[huggingface]'") from error
    return transformers


def _load(path: str | Path) -> Any:
    library = _transformers()
    kind = library.AutoConfig.from_pretrained(path).model_type
    return getattr(library, _row(kind).MODEL).from_pretrained(path)


def _row(kind: str) -> type[Family]:
    if kind not in FAMILIES:
        raise ValueError(f"model_type={kind!r} is not supported; allowed: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _family(model: Any) -> type[Family]:
    names = [base.__name__ for base in type(model).__mro__]
    for family in FAMILIES.values():
        if family.MODEL in names:
            return family
    allowed = ", ".join(family.MODEL for family in FAMILIES.values())
    raise TypeError(f"{type(model).__name__} cannot be converted; allowed: {allowed}")
