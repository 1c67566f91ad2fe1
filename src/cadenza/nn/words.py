"""A text reduced to the words that carry its meaning, as AudioCraft's `normalize_text` does (spaCy, num2words)."""

import importlib
import re
from functools import cache
from typing import Any

from cadenza.core.errors import CheckpointError

_MODEL = "en_core_web_sm"
_MARKS = "?:!.,;"


def plain_words(text: str) -> str:
    """The lemmas of an English text without its stop words and marks, numbers spelled out."""
    parse, spell = _tools()
    spoken = re.sub(r"\d+", lambda number: spell(int(number.group())), text)
    return " ".join(word.lemma_ for word in parse(spoken) if not word.is_stop and word.text not in _MARKS)


@cache
def _tools() -> tuple[Any, Any]:
    try:
        spacy, speech = importlib.import_module("spacy"), importlib.import_module("num2words")
    except ImportError as error:
        raise CheckpointError(
            f"normalize_text needs {error.name}, which is not installed: "
            'pip install "cadenza[text]", or set normalize_text: false'
        ) from None
    try:
        return spacy.load(_MODEL), speech.num2words
    except OSError:
        raise CheckpointError(
            f"normalize_text needs spaCy's model {_MODEL}: python -m spacy download {_MODEL}, or set normalize_text: false"
        ) from None
