"""Grapheme to phoneme in twenty languages (SIGMORPHON 2021): what ten of them teach a model about ten others.

`g2p_medium` has the ten languages of 8,000 training words, together; `g2p_ady` and its nine neighbours have 800 words
of one language each. All of them share the same symbols, and the first symbol of every word names its language, so a
model of `g2p_medium` can be fine-tuned on each of the others. `g2p_lowres` is the name for those ten.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path

from .archives import members
from .base import Example, PairData, PublishedRow, Symbols, Task
from .datasets import DATASETS
from .find import find, read_bytes
from .g2p import Pronunciations, parse
from .metrics import error_rates
from .vocabulary import Vocabulary

SPLIT = "sigmorphon-2021-g2p"
MEDIUM = {
    "arm_e": "Armenian",
    "bul": "Bulgarian",
    "dut": "Dutch",
    "fre": "French",
    "geo": "Georgian",
    "hbs_latn": "Serbo-Croatian",
    "hun": "Hungarian",
    "jpn_hira": "Japanese",
    "kor": "Korean",
    "vie_hanoi": "Vietnamese",
}
# The language, and the word error rate on its 100 test words that the shared task's baseline has.
LOW = {
    "ady": ("Adyghe", 22.0),
    "gre": ("Greek", 21.0),
    "ice": ("Icelandic", 12.0),
    "ita": ("Italian", 19.0),
    "khm": ("Khmer", 34.0),
    "lav": ("Latvian", 55.0),
    "mlt_latn": ("Maltese", 19.0),
    "rum": ("Romanian", 10.0),
    "slv": ("Slovene", 49.0),
    "wel_sw": ("Welsh", 10.0),
}
MEDIUM_AVERAGE = 10.64
BASELINE = "shared task's baseline, an ensemble"
SOURCE = "README of sigmorphon/2021-task1"


def load(languages: tuple[str, ...], data: str | Path | None = None) -> PairData:
    """The published splits of these languages, a word of each in turn, so that every part of them has all languages.

    Raises:
        DataNotFound, DataDamaged: see `find`.
    """
    texts = read(find(DATASETS[SPLIT], data)["data.tar"])
    # All letters of all files are symbols, so that every model of these languages has the same ones; a letter that
    # only a test word has is then a symbol that nothing was learnt about.
    letters = sorted({letter for words in texts.values() for word in words for letter in word})
    phonemes = sorted({one for words in texts.values() for prons in words.values() for pron in prons for one in pron})
    source, target = Vocabulary((*map(mark, (*MEDIUM, *LOW)), *letters)), Vocabulary(phonemes)
    train, dev, test = (
        [
            one
            for turn in zip_longest(*(examples(texts, language, part) for language in languages))
            for one in turn
            if one
        ]
        for part in ("train", "dev", "test")
    )
    pairs = [(one.source, pron) for one in train for pron in one.references]
    return PairData(source, target, pairs, dev, test, SPLIT, comparable=True)


@lru_cache(maxsize=1)
def read(path: Path) -> dict[str, Pronunciations]:
    """{name of a file: its words} for these languages; kept, since a group of tasks reads it again and again."""
    return {
        name: parse(content.decode())
        for name, content in members(read_bytes(path)).items()
        if name.rpartition("/")[2].rpartition("_")[0] in (*MEDIUM, *LOW)
    }


def examples(texts: dict[str, Pronunciations], language: str, part: str) -> list[Example]:
    words = texts[f"{'low' if language in LOW else 'medium'}/{language}_{part}.tsv"]
    return [Example(f"{language} {word}", (mark(language), *word), tuple(prons)) for word, prons in words.items()]


def mark(language: str) -> str:
    """The symbol that a word of this language starts with."""
    return f"<{language}>"


def letters(text: str, language: str | None = None) -> Symbols:
    """The letters of one word behind the mark of its language; without `language` the text names it: `fre bonjour`.

    Raises:
        ValueError: it is not one word, or the language is none of the twenty.
    """
    words = text.split()
    if language is not None:
        words = [language, *words]
    if len(words) != 2:
        form = "one word" if language is not None else "a language and one word"
        raise ValueError(f"{text!r} is not {form}; languages are {', '.join((*MEDIUM, *LOW))}")
    if words[0] not in (*MEDIUM, *LOW):
        raise ValueError(f"language {words[0]!r} is unknown; allowed: {', '.join((*MEDIUM, *LOW))}")
    return (mark(words[0]), *words[1])


SIZES = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "nheads": 4, "d_ff": 256}
RECURRENT = {"d_model": 168, "layers": 2, "dropout": 0.1}
MODELS = {
    "transformer": {**SIZES, "dropout": 0.1},
    "gru": RECURRENT,
    "gru-attention": RECURRENT,
}


def _task(name: str, summary: str, languages: tuple[str, ...], published: float, recipes: dict) -> Task:  # type: ignore[type-arg]
    return Task(
        name=name,
        summary=summary,
        dataset=SPLIT,
        load=partial(load, languages),
        symbols=partial(letters, language=languages[0] if len(languages) == 1 else None),
        score=error_rates,
        metric="wer",
        columns=("per", "wer"),
        published=(PublishedRow(BASELINE, {"wer": published}, SOURCE),),
        longest_output=64,
        recipes=recipes,
    )


MEDIUM_TASK = _task(
    "g2p_medium",
    "Words of ten languages to phonemes, SIGMORPHON 2021, medium",
    tuple(MEDIUM),
    MEDIUM_AVERAGE,
    {
        "quick": {"batch_size": 128, "lr": 3e-3, "minutes": 6.0, "evaluations": 6, "model": MODELS},
        "full": {"batch_size": 128, "lr": 2e-3, "minutes": 60.0, "ema": 0.999, "dev_words": 0, "model": MODELS},
    },
)

LOW_RECIPES = {
    "quick": {"batch_size": 32, "lr": 2e-3, "steps": 500, "evaluations": 5, "dev_words": 0, "model": MODELS},
    "finetune": {"batch_size": 32, "lr": 1e-3, "steps": 500, "evaluations": 5, "dev_words": 0},
}

LOW_TASKS = tuple(
    _task(f"g2p_{language}", f"{name} words to phonemes, SIGMORPHON 2021, low", (language,), wer, LOW_RECIPES)
    for language, (name, wer) in LOW.items()
)
