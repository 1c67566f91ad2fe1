"""Values of controls as a command line writes them: numbers, words, files, JSON, or some of these one after the other."""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cadenza.core.errors import RequestError
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


if TYPE_CHECKING:
    from cadenza.system.system import System


@dataclass(frozen=True)
class ClipPrompt:
    """One clip that is asked for: its item, and the audio it goes on from if any."""

    item: dict[str, Any] = field(default_factory=dict)
    continue_from: Path | None = None

    @property
    def title(self) -> str:
        """What to call it: its prompt, else the name of what it goes on from."""
        prompt = self.item.get("prompt")
        if isinstance(prompt, list):
            prompt = ", ".join(str(text) for _, _, text in prompt)
        return str(prompt or (self.continue_from.stem if self.continue_from else ""))


def parse_prompts(words: Sequence[str], prompts: Path | None) -> list[ClipPrompt]:
    """The clips that prompts, audio files and a file of prompts ask for."""
    found = [_word(word) for word in words]
    if prompts is not None:
        found += _lines(prompts)
    if not found:
        raise typer.BadParameter("say what to play: a prompt, an audio file to go on from, or a file of prompts (--prompts)")
    return found


def parse_controls(
    system: "System", pairs: Sequence[str], named: Mapping[str, str | None], wanted: Sequence[ClipPrompt]
) -> dict[str, Any]:
    """The values of `id=value` pairs and of options named after controls, of which no clip that is wanted has one yet.

    RequestError names a control that the system has not, and those it has.
    """
    given = [(name, text, f"--{name}") for name, text in named.items() if text is not None]
    given += [(*parse_pair(text, "--set"), f"--set {text}") for text in pairs]
    found = {}
    for name, text, option in given:
        said = [i for i, one in enumerate(wanted, 1) if name in one.item]
        if name in found or said:
            where = "is set twice" if name in found else f"has a value in clip {said[0]} already"
            raise typer.BadParameter(f"'{text}': '{name}' {where}; leave one out", param_hint=option)
        if name not in (there := system.conditioners.input_ids()):
            close = difflib.get_close_matches(name, there, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            known = ", ".join(there) or "none"
            raise RequestError(f"{option}: {system.card.name} has no control '{name}'; its controls are: {known}.{hint}")
        if not text.strip():
            raise typer.BadParameter("is empty; say a value or leave it out", param_hint=option)
        part = system.spec.conditioners.get(name)
        found[name] = parse_value(text, part.widget if part else "text", option)
    return found


def parse_sampling(pairs: Sequence[str]) -> dict[str, float]:
    """`name=value` pairs of sampling."""
    named = [(text, *parse_pair(text, "--sampling")) for text in pairs]
    return {name: parse_number(said, "--sampling", said=text) for text, name, said in named}


def parse_guidance(text: str | None, negative: str | None) -> Any:
    """A scale, or the fields of Guidance, with a negative prompt where there is one; None where nothing is said."""
    said: Any = None
    if text is not None:
        said = parse_json(text, "--guidance") if text.lstrip()[:1] == "{" else parse_number(text, "--guidance")
    if negative is None:
        return said
    if not negative.strip():
        raise typer.BadParameter("is empty; say what to keep away from, or leave it out", param_hint="--negative")
    fields = said if isinstance(said, dict) else {"scale": said}
    if fields.get("negative"):
        raise typer.BadParameter("--guidance has a negative already; leave one out", param_hint="--negative")
    return {**fields, "negative": _prompt(negative)}


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """`name=value`, neither of them empty."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint=option)
    return name.strip(), value.strip()


def _word(word: str) -> ClipPrompt:
    """A prompt, nothing where the word is empty, or where a file has that name the audio or codes to go on from."""
    from cadenza.dsp.audio_io import SUFFIXES

    path = Path(word)
    try:
        there = path.is_file()
    except OSError:  # longer than a file's name can be
        there = False
    if not there and path.suffix.lower() in (*SUFFIXES, ".safetensors"):
        raise RequestError(f"{word}: no such file to go on from; if these are words, leave '{path.suffix}' out of them")
    if not there:
        return ClipPrompt(_prompt(word) if word.strip() else {})
    if path.suffix.lower() not in (*SUFFIXES, ".safetensors"):
        raise RequestError(
            f"{word}: a file, but neither audio nor codes to go on from; if it holds prompts, use --prompts {word}"
        )
    return ClipPrompt(continue_from=path)


def _prompt(text: str) -> dict[str, Any]:
    """A prompt, or several with the seconds in which each holds."""
    return {"prompt": parse_timeline(text) or text}


def _lines(path: Path) -> list[ClipPrompt]:
    """A clip for each line: a prompt, or in a .jsonl file an item of ids and values."""
    kind = path.suffix.lower()
    if kind == ".json":
        raise RequestError(f"{path}: prompts are read from lines; write each item as a line of its own, in a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None)
        raise RequestError(f"{path}: cannot be read as text ({reason}); give a file with a prompt in each line") from None
    found = []
    for place, line in enumerate(lines, 1):
        if line.strip():
            found.append(ClipPrompt(_item(line, path, place) if kind == ".jsonl" else _prompt(line.strip())))
    if not found:
        raise RequestError(f"{path}: no line with a prompt in it")
    return found


def _item(line: str, path: Path, place: int) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f'{path}, line {place}: no JSON ({error.msg}); write an item such as {{"prompt": "..."}}') from None
    if isinstance(item, str):
        return {"prompt": item}
    if not isinstance(item, dict):
        raise RequestError(f"{path}, line {place}: neither a prompt nor an item of ids and values")
    return item
