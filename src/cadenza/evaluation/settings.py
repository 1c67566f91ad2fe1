"""Settings: the same held-out clips asked for in text, as values, as both, and not at all.

A system that reads values in its texts is also asked in text without doing so: what its text conditioner alone is worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cadenza.core.errors import DataError, RequestError
from cadenza.data.items import held_out
from cadenza.data.manifest import Clip, Manifest
from cadenza.evaluation.examples import known
from cadenza.evaluation.wishes import Wish, hand_written, of_caption, of_prompt, of_values

TEXT, VALUES = "prompt", ("tempo", "key")
BESIDE = {"text": "nothing", "unread": "nothing", "values": "nothing", "both": "text"}  # what a setting's own effect is against


@dataclass(frozen=True)
class Setting:
    """Items to generate, with what each asks for, how long it is to be, and the reference clip if there is one."""

    name: str
    items: list[dict[str, Any]]
    wishes: list[Wish]
    seconds: list[float]
    reads: bool = True  # whether the system may read values in the texts


@dataclass(frozen=True)
class Reference:
    """A held-out clip with its truth."""

    clip: Clip
    truth: dict[str, Any]


def references(manifest: Manifest, count: int) -> list[Reference]:
    """`count` clips of a manifest, or all if there are fewer, the same ones however the manifest is ordered."""
    found = sorted(known(manifest), key=lambda pair: pair[0].id)
    out = held_out((clip.id for clip, _ in found), count)
    chosen = [Reference(clip, truth) for clip, truth in found if clip.id in out]
    if len(chosen) < 2:
        raise DataError(f"{manifest.folder}: {len(chosen)} clip to evaluate on; at least two are needed")
    return chosen


def settings(
    references: Sequence[Reference], families: Sequence[str], *, controls: Sequence[str], longest: float, reads: bool = False
) -> list[Setting]:
    """The settings that a system with these controls can be asked in; always with nothing at all."""
    seconds = [min(float(reference.truth["seconds"]), longest) for reference in references]
    nothing = Setting("nothing", [{} for _ in references], [Wish() for _ in references], seconds)
    values = [{name: reference.truth[name] for name in VALUES if name in controls} for reference in references]
    wished = [_only(of_values(reference.truth), controls) for reference in references]
    found = []
    if TEXT in controls:
        texts, wishes = zip(*(_caption(i, r.truth, families) for i, r in enumerate(references)), strict=True)
        found.append(Setting("text", [{TEXT: text} for text in texts], list(wishes), seconds))
        if reads:
            found.append(Setting("unread", [{TEXT: text} for text in texts], list(wishes), seconds, reads=False))
        entries = hand_written()
        prompts = [{TEXT: entry["prompt"]} for entry in entries]
        by_hand = Setting("hand", prompts, [of_prompt(e, families) for e in entries], [min(10.0, longest)] * len(entries))
        if any(values):
            items = [{TEXT: text, **given} for text, given in zip(texts, values, strict=True)]
            found.append(Setting("both", items, [_joined(a, b) for a, b in zip(wishes, wished, strict=True)], seconds))
        found.append(by_hand)
    if any(values):
        found.append(Setting("values", values, wished, seconds))
    if not found:
        raise RequestError(
            f"none of this system's controls is measured here; there are {', '.join(controls) or 'none'}, "
            f"it takes {TEXT}, {' or '.join(VALUES)}"
        )
    return [nothing, *found]


def _caption(i: int, truth: Mapping[str, Any], families: Sequence[str]) -> tuple[str, Wish]:
    """One of a clip's captions, each in turn, and what it says."""
    texts, mentions = truth["prompt"], truth["prompt_mentions"]
    which = i % len(texts)
    return texts[which], of_caption(texts[which], mentions[which], truth, families)


def _only(wish: Wish, controls: Sequence[str]) -> Wish:
    """The wish without what the system cannot be told as a value."""
    return Wish(tempo=wish.tempo if "tempo" in controls else None, key=wish.key if "key" in controls else None)


def _joined(text: Wish, values: Wish) -> Wish:
    """What a text and values say together, the values where both speak."""
    tempo, key = (getattr(text if getattr(values, name) is None else values, name) for name in VALUES)
    return replace(text, tempo=tempo, key=key)
