"""Music metadata: typed cleaning of what files say of themselves, and texts that mix a description with other fields.

The fields are those of AudioCraft's music sidecars (`MusicInfo`): title, artist, key, bpm, genre, moods, keywords,
description, name, instrument.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from pydantic import Field

from cadenza.core.spec import Spec
from cadenza.data.items import Item, SegmentInfo

_NOTHING = ("", "none", "nan", "null", "n/a")  # what stands for no value where a value was demanded
MERGED = ("key", "bpm", "genre", "moods", "instrument", "keywords")  # the fields that can enter the text


def clean_text(value: Any) -> str | None:
    """A text on one line, or None where it says nothing."""
    if not isinstance(value, str) or value.strip().lower() in _NOTHING:
        return None
    return " ".join(value.split())


def clean_keyword(value: Any) -> str | None:
    """A word or phrase in lower case."""
    found = clean_text(value)
    return None if found is None else found.lower()


def clean_keywords(value: Any) -> list[str] | None:
    """Phrases in lower case, each once, from a list or from one text with commas or semicolons."""
    parts = re.split(r"[,;]", value) if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return list(dict.fromkeys(found for part in parts if (found := clean_keyword(part)))) or None


def parse_key(value: Any) -> str | None:
    """One musical key; a text that names several is no value."""
    found = clean_text(value)
    return None if found is None or "," in found else found


def parse_bpm(value: Any) -> float | None:
    """A tempo over zero, from a number or a text that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if 0 < found < math.inf else None


def clean_description(value: Any) -> str | list[str] | None:
    """A text, or several to choose from."""
    if isinstance(value, list | tuple):
        return [found for part in value if (found := clean_text(part))] or None
    return clean_text(value)


FIELDS: dict[str, Callable[[Any], Any]] = {
    "title": clean_text,
    "artist": clean_text,
    "key": parse_key,
    "bpm": parse_bpm,
    "genre": clean_keyword,
    "moods": clean_keywords,
    "keywords": clean_keywords,
    "description": clean_description,
    "name": clean_keyword,
    "instrument": clean_keyword,
}


def clean_metadata(metadata: Item) -> dict[str, Any]:
    """The metadata with each music field in its type or absent, and `prompt` as the description unless it is there."""
    fields = {name: make(metadata[name]) for name, make in FIELDS.items() if name in metadata}
    rest = {name: value for name, value in metadata.items() if name not in FIELDS}
    cleaned = {**rest, **{name: value for name, value in fields.items() if value is not None}}
    if clean_description(cleaned.get("prompt")) is None:
        cleaned.pop("prompt", None)
        cleaned |= {"prompt": cleaned["description"]} if "description" in cleaned else {}
    return cleaned


class PromptMixer(Spec):
    """A function to items that now and then adds `field: value` pairs to the prompt, in any order, as AudioCraft does.

    AudioCraft calls the probabilities merge_text_p, drop_desc_p and drop_other_p; its code keeps a field with the last
    one, which is why it is `keep_field` here. `drop` makes fields absent, in the text and as conditions. Without
    chance, as in validation, the prompt is the description, or the fields where there is none. `exact` has the texts of
    its code to the letter: `bpm: 120.0`, keys in lower case, a full stop after every description.
    """

    merge: float = Field(0.25, ge=0, le=1)  # how often fields are added
    drop_description: float = Field(0.5, ge=0, le=1)  # how often, where fields are added, they are all there is
    keep_field: float = Field(0.5, ge=0, le=1)  # of each field, where fields are added
    drop: dict[str, float] = {}  # field -> how often it is absent altogether
    exact: bool = False

    def __call__(self, metadata: dict[str, Any], segment: SegmentInfo) -> dict[str, Any]:
        item, rng = clean_metadata(metadata), segment.rng
        if rng is None:
            return item if "prompt" in item else _with(item, self._pairs(item))
        dropped = {name for name, often in self.drop.items() if rng.random() < often}
        dropped |= {"prompt"} if "description" in dropped and item.get("prompt") == item.get("description") else set()
        item = {name: value for name, value in item.items() if name not in dropped}
        if rng.random() >= self.merge:
            told = item.get("prompt")
            return _with(item, [self._ended(told)]) if self.exact and self.merge and isinstance(told, str) else item
        pairs = [pair for pair in self._pairs(item) if rng.random() < self.keep_field]
        rng.shuffle(pairs)
        told = item.pop("prompt", None)
        if isinstance(told, list | tuple):
            told = rng.choice(told)
        if told is not None and rng.random() >= self.drop_description:
            pairs = [told.rstrip("."), *pairs] if pairs else [self._ended(told)]
        return _with(item, pairs)

    def _pairs(self, item: Item) -> list[str]:
        return [f"{name}: {self._said(name, item[name])}" for name in MERGED if item.get(name) is not None]

    def _said(self, name: str, value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(value)
        if self.exact:
            return str(value).lower() if name == "key" else str(value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _ended(self, told: str) -> str:
        return f"{told.rstrip('.')}." if self.exact else told


def _with(item: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    return {**item, "prompt": ". ".join(texts)} if texts else item
