"""Music metadata: clean the fields of AudioCraft's sidecars (`MusicInfo`), and mix them into the prompt.

The fields are title, artist, key, bpm, genre, moods, keywords, description, name, instrument.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from pydantic import Field

from cadenza.core.spec import Spec
from cadenza.data.items import Item, SegmentInfo

PROMPT_FIELDS = ("key", "bpm", "genre", "moods", "instrument", "keywords")  # fields that can be added to the prompt
_EMPTY = ("", "none", "nan", "null", "n/a")  # texts that mean: no value


def clean_text(value: Any) -> str | None:
    """Return a text on one line, or None if it is empty or a placeholder."""
    if not isinstance(value, str) or value.strip().lower() in _EMPTY:
        return None
    return " ".join(value.split())


def clean_keyword(value: Any) -> str | None:
    """Return a word or phrase in lower case."""
    return clean_text(value.lower()) if isinstance(value, str) else None


def clean_keywords(value: Any) -> list[str] | None:
    """Return distinct phrases in lower case, from a list or a text with commas or semicolons."""
    parts = re.split(r"[,;]", value) if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return list(dict.fromkeys(text for part in parts if (text := clean_keyword(part)))) or None


def parse_key(value: Any) -> str | None:
    """Return one musical key; None for a text that names several."""
    text = clean_text(value)
    return None if text is None or "," in text else text


def parse_bpm(value: Any) -> float | None:
    """Return a positive tempo in beats per minute from a number or a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        bpm = float(value)
    except ValueError:
        return None
    return bpm if 0 < bpm < math.inf else None


def clean_description(value: Any) -> str | list[str] | None:
    """Return a text, or a list of alternative texts."""
    if isinstance(value, list | tuple):
        return [text for part in value if (text := clean_text(part))] or None
    return clean_text(value)


FIELDS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("title", "artist"), clean_text), "key": parse_key, "bpm": parse_bpm,
    **dict.fromkeys(("genre", "name", "instrument"), clean_keyword), **dict.fromkeys(("moods", "keywords"), clean_keywords),
    "description": clean_description,
}  # fmt: skip


def clean_metadata(metadata: Item) -> dict[str, Any]:
    """Return metadata with music fields cleaned or removed; a missing `prompt` is set to the description."""
    fields = {name: clean(metadata[name]) for name, clean in FIELDS.items() if name in metadata}
    others = {name: value for name, value in metadata.items() if name not in FIELDS}
    cleaned = {**others, **{name: value for name, value in fields.items() if value is not None}}
    if clean_description(cleaned.get("prompt")) is None:
        cleaned.pop("prompt", None)
        cleaned |= {"prompt": cleaned["description"]} if "description" in cleaned else {}
    return cleaned


class PromptMixer(Spec):
    """Add random `field: value` pairs to the prompt, in random order, as AudioCraft does.

    AudioCraft calls the probabilities merge_text_p, drop_desc_p and drop_other_p; its code uses the last one as the
    probability to keep a field, hence `keep_field`. `drop` removes fields, in the text and as conditions. Without
    randomness, as in validation, the prompt is the description, or the fields if it is missing. `exact` reproduces
    AudioCraft's formatting: `bpm: 120.0`, keys in lower case, a full stop after every description.
    """

    merge: float = Field(0.25, ge=0, le=1)  # probability that fields are added
    drop_description: float = Field(0.5, ge=0, le=1)  # probability that added fields replace the description
    keep_field: float = Field(0.5, ge=0, le=1)  # probability of each field, if fields are added
    drop: dict[str, float] = {}  # field -> probability that it is removed
    exact: bool = False

    def __call__(self, metadata: dict[str, Any], segment: SegmentInfo) -> dict[str, Any]:
        item, rng = clean_metadata(metadata), segment.rng
        if rng is None:
            return item if "prompt" in item else _with_prompt(item, self._pairs(item))
        dropped = {name for name, probability in self.drop.items() if rng.random() < probability}
        dropped |= {"prompt"} if "description" in dropped and item.get("prompt") == item.get("description") else set()
        item = {name: value for name, value in item.items() if name not in dropped}
        if rng.random() >= self.merge:
            if self.exact and self.merge and isinstance(prompt := item.get("prompt"), str):
                return _with_prompt(item, [self._with_full_stop(prompt)])
            return item
        pairs = [pair for pair in self._pairs(item) if rng.random() < self.keep_field]
        rng.shuffle(pairs)
        prompt = item.pop("prompt", None)
        if isinstance(prompt, list | tuple):
            prompt = rng.choice(prompt)
        if prompt is not None and rng.random() >= self.drop_description:
            pairs = [prompt.rstrip("."), *pairs] if pairs else [self._with_full_stop(prompt)]
        return _with_prompt(item, pairs)

    def _pairs(self, item: Item) -> list[str]:
        return [f"{name}: {self._format(name, item[name])}" for name in PROMPT_FIELDS if item.get(name) is not None]

    def _format(self, name: str, value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(value)
        if self.exact:
            return str(value).lower() if name == "key" else str(value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _with_full_stop(self, text: str) -> str:
        return f"{text.rstrip('.')}." if self.exact else text


def _with_prompt(item: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    return {**item, "prompt": ". ".join(texts)} if texts else item
