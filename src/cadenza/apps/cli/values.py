"""Values of controls as a command line writes them: numbers, words, files, JSON, or some of these one after the other."""

import json
import math
import re
from pathlib import Path
from typing import Any

import typer

from cadenza.core.timeline import Timeline

_FILES = {"audio", "melody", "drums", "stems", "codes", "file"}  # widgets whose values may be files
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?|end)\s*:\s*(.*\S)\s*", re.DOTALL)


def parse_value(text: str, widget: str, option: str) -> Any:
    """A value for a control of this widget.

    JSON where it begins as such; `0-8: piano; 8-end: strings` as a list of (start, end, value), in seconds; else a
    number, the path of a file, or the text itself, as the widget has it. BadParameter names what cannot be read.
    """
    if text.lstrip()[:1] in {"[", "{"}:
        return parse_json(text, option)
    if (spans := parse_timeline(text)) is not None:
        return [(start, end, _one(said, widget, option)) for start, end, said in spans]
    return _one(text, widget, option)


def parse_timeline(text: str) -> list[tuple[float, float | None, str]] | None:
    """The spans that a text such as `0-8: piano; 8-end: strings` says, None for one that is not of this form."""
    found = [_SPAN.fullmatch(part) for part in text.split(";") if part.strip()]
    if not found or not all(found):
        return None
    return [(float(m[1]), None if m[2] == "end" else float(m[2]), m[3]) for m in found if m]


def format_value(value: Any) -> str:
    """A value as a command line writes it."""
    if isinstance(value, Timeline):
        ends = ["end" if math.isinf(span.end) else f"{span.end:g}" for span in value.spans]
        each = [
            f"{span.start:g}-{end}: {format_value(span.value)}"
            for span, end in zip(value.spans, ends, strict=True)
            if span.value is not None
        ]
        return "; ".join(each)
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_number(text: str, option: str, *, said: str = "") -> float:
    """A number; `said` is what it was a part of."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"'{said or text}' is not a number", param_hint=option) from None


def parse_json(text: str, option: str) -> Any:
    """What a text says in JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"'{text}': begins as JSON, but is none ({error.msg}, character {error.pos + 1})"
        raise typer.BadParameter(message, param_hint=option) from None


def _one(text: str, widget: str, option: str) -> Any:
    if widget == "number":
        return parse_number(text, option)
    if widget in _FILES:
        return _file(text, option)
    return text


def _file(text: str, option: str) -> Any:
    """The path of a file that is there, or a number as a span of notes has it."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not Path(text).is_file():
        raise typer.BadParameter(f"'{text}': no such file; give one, or JSON such as [[0, 0.5, 60]]", param_hint=option)
    return text
