"""Texts as words: hashed to rows of a table, or reduced to those that carry meaning (spaCy, num2words)."""

import hashlib
import importlib
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cadenza.core.errors import CheckpointError

MODEL = "en_core_web_sm"
_MARKS = "?:!.,;"
_NAME = re.compile(r"[a-z]{2,3}_[a-z0-9_]+")  # of a package with a language model
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*#?|#")
_SIGNS = str.maketrans({"♯": "#", "♭": "b", "’": "'"})


def hash_to_row(word: str, rows: int) -> int:
    """Which of `rows` rows a word has: its SHA-256 as a number, modulo `rows`; two words may share one."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()) % rows


def split_normalized_words(text: str) -> list[str]:
    """Runs of letters and digits, whatever their case, width and composition; marks between them are left out."""
    return _WORD.findall(unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold())


def lemmatize(text: str) -> str:
    """The lemmas of an English text without its stop words and marks, numbers spelled out."""
    return " ".join(spacy_tokens([text])[0])


def spacy_tokens(texts: Sequence[str], *, model: str = MODEL, lemmas: bool = True, stop_words: bool = False) -> list[list[str]]:
    """The words of each text by a language model, as AudioCraft reads them: numbers spelled out, marks left out.

    `lemmas` are the words' dictionary forms; `stop_words`, such as "the", are kept only where asked for.
    """
    parse, spell = _tools(model)
    if lemmas and not {"lemmatizer", "trainable_lemmatizer"} & set(parse.pipe_names):
        raise CheckpointError(f"spaCy's model '{model}' has no lemmatizer; set lemmas: false, or choose another model")
    spoken = [re.sub(r"\d{1,30}", lambda number: spell(int(number.group())), text) for text in texts]
    said = [[word for word in words if stop_words or not word.is_stop] for words in parse.pipe(spoken)]
    return [[word.lemma_ if lemmas else word.text for word in words if word.text not in _MARKS] for words in said]


def find_spacy_model(model: str) -> Path:
    """The folder of one of spaCy's language models, given that folder or the name of an installed package."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        found = [folder]
    else:
        package = importlib.util.find_spec(model) if _NAME.fullmatch(model) else None
        places = [] if package is None else package.submodule_search_locations or []
        found = [path.parent for place in places for path in Path(place).glob("*/config.cfg")]
    if not found or not (found[0] / "config.cfg").is_file():
        raise CheckpointError(
            f"spaCy's model '{model}' is neither installed nor a folder with its config.cfg: "
            f"python -m spacy download {model if _NAME.fullmatch(model) else MODEL}, or do without it "
            "(tokenizer: words of `lut`, normalize_text: false of `t5`)"
        )
    return found[0]


@lru_cache(maxsize=4)
def _tools(model: str) -> tuple[Any, Any]:
    """The parser of a language model and the function that spells numbers out."""
    try:
        spacy, speech = importlib.import_module("spacy"), importlib.import_module("num2words")
    except ImportError as error:
        raise CheckpointError(
            f"reading texts with spaCy needs {error.name}, which is not installed: "
            'pip install "cadenza[text]", or set normalize_text: false (`t5`) or tokenizer: words (`lut`)'
        ) from None
    folder = find_spacy_model(model)
    try:
        return spacy.load(folder), speech.num2words
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is no language model that this spaCy can read ({error}); install it anew") from None
