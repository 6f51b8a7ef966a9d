"""Which versions and models of Hugging Face transformers can run on our attention function, and how masks reach it."""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache

NAME = "undivided"
OLDEST, NEWEST = (5, 15), (5, 24)

# model_type of the config that asks for a mask. These models hand a mask on to the attention function untouched, so
# that it may be a KeyMask. Every other model gets the float mask that eager attention gets, which is right even
# where a decoder does not say that it is causal, and where a mask is sliced, joined with another or added to scores.
HAND_ON = frozenset(
    (
        "bart",
        "bert",
        "blenderbot",
        "blenderbot-small",
        "gemma2",
        "gpt_oss",
        "llama",
        "m2m_100",
        "marian",
        "mbart",
        "mistral",
        "moonshine",
        "mt5",
        "pegasus",
        "plbart",
        "qwen2",
        "qwen3",
        "speech_to_text",
        "switch_transformers",
        "t5",
        "t5_gemma_module",
        "umt5",
        "vit",
        "whisper",
    )
)
# Keywords of a call of attention that change what is computed, and that ours has no word for: the keys or blocks of
# keys that a model picks for each query, and sinks that hang on the query.
UNKNOWN_WORDS = ("indices", "block_indices", "sinks")
# These make a float mask (batch, 1, 1, seqlen_k) of their own from the padding: 0 is visible, the lowest number is not.
OWN_PADDING_MASK = frozenset(("switch_transformers",))


def check_version() -> None:
    """Raises: ImportError where transformers is missing or of a version whose calls are not known."""
    allowed = f"transformers {'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    cure = "pip install 'undivided[huggingface]'"
    try:
        from transformers import __version__
    except ImportError as error:
        raise ImportError(f"undivided.integrations.huggingface needs {allowed}; {cure}") from error
    if not OLDEST <= tuple(int(part) for part in re.findall(r"\d+", __version__)[:2]) <= NEWEST:
        raise ImportError(f"transformers {__version__} is installed, {allowed} is supported; {cure}")


@cache
def never_calls(module: str) -> bool:
    """Whether the attention classes in a module of models leave transformers' attention interface aside."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):  # a model typed into a notebook
        return False
    has_attention = re.search(r"^class \w*Attention\w*\(nn\.Module\)", source, re.MULTILINE)
    return has_attention is not None and "ALL_ATTENTION_FUNCTIONS" not in source


@cache
def unknown_word(module: str) -> str | None:
    """The first of `UNKNOWN_WORDS` that a module of models gives its attention."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return None
    call = rf"attention_interface\((?:[^()]|\([^()]*\))*\b({'|'.join(UNKNOWN_WORDS)})="
    found = re.search(call, source)
    return None if found is None else found[1]


def cannot_follow(kind: str, word: str) -> str:
    return (
        f"{kind} gives its attention {word}=, which attn_implementation={NAME!r} cannot follow; "
        "load the model with attn_implementation='sdpa' or 'eager'"
    )


def refusal(model_class: type) -> str | None:
    """Why a class of models cannot run on our attention, None where it can."""
    if (word := unknown_word(model_class.__module__)) is not None:
        return cannot_follow(model_class.__name__, word)
    if not never_calls(model_class.__module__):
        return None
    return (
        f"{model_class.__name__} computes its attention itself and never calls transformers' attention interface: "
        f"attn_implementation={NAME!r} would change nothing. Leave it out; for one part of a larger model pass "
        f"attn_implementation={{'encoder': {NAME!r}, 'decoder': 'eager'}} with the names of its sub-configs"
    )


# How a layer takes its attention's class from a table of those that transformers has.
TABLE = re.compile(r"_CLASSES\[(?:self\.)?config\._attn_implementation\]")


@cache
def table_objection(model_class: type) -> str | None:
    """Why a class of models cannot be made with our attention, None where it can; models inside of it do not count."""
    from transformers import PreTrainedModel

    module = sys.modules[model_class.__module__]
    try:
        if not TABLE.search(inspect.getsource(module)):
            return None
        kinds = [model_class]
        for kind in kinds:  # it grows
            source = inspect.getsource(kind)
            if TABLE.search(source):
                return (
                    f"{model_class.__name__} takes the classes of its attention from a table by name, which has no "
                    f"{NAME!r}: load the model with attn_implementation='sdpa' or 'eager' and call "
                    "undivided.accelerate(model)"
                )
            parts = [vars(module).get(name) for name in re.findall(r"\b[A-Z]\w*(?=\()", source)]
            models = [part for part in parts if isinstance(part, type) and issubclass(part, PreTrainedModel)]
            kinds += [part for part in parts if isinstance(part, type) and part not in (*kinds, *models)]
    except (OSError, TypeError):
        pass
    return None
