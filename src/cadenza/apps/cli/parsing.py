"""Parsing of prompts, controls, guidance and sampling options of the command line."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cadenza.core.errors import RequestError
from cadenza.core.timeline import Timeline

if TYPE_CHECKING:
    from cadenza.system.system import System

_FILE_WIDGETS = {"audio", "melody", "drums", "stems", "codes", "file"}  # widgets whose values may be files
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?|end)\s*:\s*(.*\S)\s*", re.DOTALL)


@dataclass(frozen=True)
class ClipPrompt:
    """A requested clip: its item and, if any, the audio that it continues."""

    item: dict[str, Any] = field(default_factory=dict)
    continue_from: Path | None = None

    @property
    def title(self) -> str:
        """The prompt, or the name of the continued file."""
        prompt = self.item.get("prompt")
        if isinstance(prompt, list):
            prompt = ", ".join(str(text) for _, _, text in prompt)
        return str(prompt or (self.continue_from.stem if self.continue_from else ""))


def parse_value(text: str, widget: str, option: str) -> Any:
    """Parse the value of a control with this widget: JSON, a timeline, a number, a file or a text.

    `0-8: piano; 8-end: strings` becomes a list of (start, end, value) in seconds. Raises BadParameter, which names the option.
    """
    if text.lstrip()[:1] in {"[", "{"}:
        return parse_json(text, option)
    if (spans := parse_timeline(text)) is not None:
        return [(start, end, _parse_constant(value, widget, option)) for start, end, value in spans]
    return _parse_constant(text, widget, option)


def _parse_constant(text: str, widget: str, option: str) -> Any:
    if widget == "number" or (widget in _FILE_WIDGETS and re.fullmatch(r"\d+(\.\d+)?", text)):  # such as a note of a span
        return parse_float_option(text, option)
    if widget in _FILE_WIDGETS and not Path(text).is_file():
        raise typer.BadParameter(f"'{text}': no such file; give one, or JSON such as [[0, 0.5, 60]]", param_hint=option)
    return text


def parse_timeline(text: str) -> list[tuple[float, float | None, str]] | None:
    """Parse spans such as `0-8: piano; 8-end: strings` to (start, end, text); None for a text of another form."""
    spans = [_SPAN.fullmatch(part) for part in text.split(";") if part.strip()]
    if not spans or not all(spans):
        return None
    return [(float(span[1]), None if span[2] == "end" else float(span[2]), span[3]) for span in spans if span]


def format_value(value: Any) -> str:
    """Format a value as it is written on the command line."""
    if isinstance(value, Timeline):
        ends = ["end" if math.isinf(span.end) else f"{span.end:g}" for span in value.spans]
        spans = [(f"{span.start:g}-{end}", span.value) for span, end in zip(value.spans, ends, strict=True)]
        return "; ".join(f"{seconds}: {format_value(part)}" for seconds, part in spans if part is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_float_option(text: str, option: str) -> float:
    """Parse a number; raise BadParameter otherwise."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a number", param_hint=option) from None


def parse_json(text: str, option: str) -> Any:
    """Parse JSON; raise BadParameter with the position of the mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"'{text}' is not valid JSON ({error.msg}, character {error.pos + 1})"
        raise typer.BadParameter(message, param_hint=option) from None


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """Parse `NAME=VALUE`; raise BadParameter if either is empty."""
    name, _, value = map(str.strip, text.partition("="))
    if not name or not value:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint=option)
    return name, value


def parse_prompts(words: Sequence[str], prompts: Path | None) -> list[ClipPrompt]:
    """Return the clips of prompts and audio files in `words`, and of the file `prompts`."""
    clips = [_parse_word(word) for word in words] + ([] if prompts is None else _read_prompts(prompts))
    if not clips:
        raise typer.BadParameter("nothing to generate; give a prompt, an audio file to continue, or a file of --prompts")
    return clips


def parse_controls(
    system: "System", pairs: Sequence[str], options: Mapping[str, str | None], clips: Sequence[ClipPrompt]
) -> dict[str, Any]:
    """Parse the controls of all clips; raise RequestError if the system does not have one, BadParameter if it is set twice."""
    from cadenza.core.spec import did_you_mean

    given = [(name, text, f"--{name}") for name, text in options.items() if text is not None]
    given += [(*parse_pair(text, "--set"), f"--set {text}") for text in pairs]
    controls, known = {}, system.conditioners.input_ids()
    for name, text, option in given:
        own = [i for i, clip in enumerate(clips, 1) if name in clip.item]
        if name in controls or own:
            problem = "is set twice" if name in controls else f"has a value in clip {own[0]} already"
            raise typer.BadParameter(f"'{text}': '{name}' {problem}; leave one out", param_hint=option)
        if name not in known:
            raise RequestError(f"{option}: {system.card.name} has no control '{name}'.{did_you_mean(name, known)}")
        if not text.strip():
            raise typer.BadParameter("is empty; give a value or leave it out", param_hint=option)
        part = system.spec.conditioners.get(name)
        controls[name] = parse_value(text, part.widget if part else "text", option)
    return controls


def parse_sampling(pairs: Sequence[str]) -> dict[str, float]:
    """Parse the `NAME=VALUE` pairs of --sampling."""
    named = [(text, *parse_pair(text, "--sampling")) for text in pairs]
    return {name: parse_float_option(value, f"--sampling {text}") for text, name, value in named}


def parse_guidance(text: str | None, negative: str | None) -> Any:
    """Return a scale or a mapping of the fields of Guidance, with the negative prompt if given; None for the default."""
    guidance: Any = None
    if text is not None:
        guidance = parse_json(text, "--guidance") if text.lstrip()[:1] == "{" else parse_float_option(text, "--guidance")
    if negative is None:
        return guidance
    if not negative.strip():
        raise typer.BadParameter("is empty; write what to avoid, or leave it out", param_hint="--negative")
    fields = guidance if isinstance(guidance, dict) else {"scale": guidance}
    if fields.get("negative"):
        raise typer.BadParameter("--guidance has a negative already; leave one out", param_hint="--negative")
    return {**fields, "negative": _prompt_item(negative)}


def _prompt_item(text: str) -> dict[str, Any]:
    """Return the item of a prompt, which may be a timeline."""
    return {"prompt": parse_timeline(text) or text}


def _parse_word(word: str) -> ClipPrompt:
    """Return the clip of a prompt, of an empty word, or of the name of a file to continue."""
    from cadenza.dsp.audio_io import SUFFIXES

    path, exists = Path(word), os.path.isfile(word)  # a prompt can be longer than the name of a file
    is_prompt_audio = path.suffix.lower() in (*SUFFIXES, ".safetensors")
    if exists and not is_prompt_audio:
        raise RequestError(
            f"{word}: neither audio nor codes that could be continued; for a file of prompts, use --prompts {word}"
        )
    if is_prompt_audio and not exists:
        raise RequestError(f"{word}: no such file to continue; if it is a prompt, remove '{path.suffix}' from it")
    return ClipPrompt(continue_from=path) if exists else ClipPrompt(_prompt_item(word) if word.strip() else {})


def _read_prompts(path: Path) -> list[ClipPrompt]:
    """Return the clip of each line of a file: a prompt, or in a .jsonl file an item as well."""
    kind = path.suffix.lower()
    if kind == ".json":
        raise RequestError(f"{path}: prompts are read line by line; write each item on a line of its own, in a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None)
        raise RequestError(f"{path}: cannot be read as text ({reason}); give a file with one prompt on each line") from None
    items: list[Any] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            item = parse_json(line, f"{path}, line {number}") if kind == ".jsonl" else line.strip()
            items.append(_prompt_item(item) if isinstance(item, str) else item)
            if not isinstance(items[-1], dict):
                raise RequestError(f"{path}, line {number}: neither a prompt nor an item of ids and values")
    if not items:
        raise RequestError(f"{path}: no line with a prompt; write one prompt on each line")
    return [ClipPrompt(item) for item in items]
