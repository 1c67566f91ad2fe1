"""AudioCraft's sets of conditions as items: `ConditioningAttributes`, segments that give them, and flat dictionaries."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cadenza.core.errors import DataError
from cadenza.dsp.audio import Audio

NAMES = {"description": "prompt", "self_wav": "melody", "frame_chords": "chords"}  # theirs -> what they are called here
_KINDS = ("text", "wav", "joint_embed", "symbolic")
_CHORD_RATE = 50.0  # frames of chords a second, in JASCO


def item(
    attributes: Any, *, names: Mapping[str, str] = NAMES, chords: Sequence[str] = (), rate: float = _CHORD_RATE
) -> dict[str, Any]:
    """The item of a set of conditions; what is nullified there is left out here.

    `attributes` has `text`, `wav`, `joint_embed` and `symbolic`, or `to_condition_attributes`, or is a mapping of these or of
    `kind.name`. A sound becomes Audio of its own length, a joint condition its text, its sound or both, chords by their
    number a list of (start, end, name) from the names `chords` at `rate` frames a second.
    """
    found: dict[str, Any] = {}
    for kind, name, value in _attributes(attributes):
        read = {"text": _text, "wav": _sound, "joint_embed": _joint}.get(kind, lambda value: value)
        given = _symbol(name, value, chords, rate) if kind == "symbolic" else {name: read(value)}
        for own, one in given.items():
            if one is None:
                continue
            called = names.get(own, own)
            if called in found:
                raise DataError(f"two conditions would be called '{called}' here: give other `names`")
            found[called] = one
    return found


def _attributes(attributes: Any) -> list[tuple[str, str, Any]]:
    """(kind, name, value) of every condition."""
    if hasattr(attributes, "to_condition_attributes"):
        attributes = attributes.to_condition_attributes()
    if isinstance(attributes, Mapping) and not set(attributes) <= set(_KINDS):
        pairs = [(*key.partition(".")[::2], value) for key, value in attributes.items()]
        for kind, name, _ in pairs:
            if kind not in _KINDS or not name:
                raise DataError(
                    f"'{kind}.{name}' is no condition of AudioCraft; keys are like text.description or wav.self_wav"
                )
        return pairs
    if isinstance(attributes, Mapping):
        kinds = attributes
    elif any(hasattr(attributes, kind) for kind in _KINDS):
        kinds = {kind: getattr(attributes, kind, {}) for kind in _KINDS}
    else:
        raise DataError(f"a set of conditions of AudioCraft is needed, not a {type(attributes).__name__}")
    return [(kind, name, value) for kind in _KINDS for name, value in (kinds.get(kind) or {}).items()]


def _text(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _sound(value: Any) -> Audio | None:
    """The sound of one item; a length of 0 is no sound."""
    wave, length = _field(value, "wav", 0), _field(value, "length", 1)
    rates = _field(value, "sample_rate", 2)
    if wave is None or length is None or not int(torch.as_tensor(length).reshape(-1)[0]):
        return None
    wave = wave[None] if wave.ndim == 2 else wave
    if wave.ndim != 3 or len(wave) != 1:
        raise DataError(
            f"the sound of an item must be [1, channels, samples], not {list(wave.shape)}; give the items one by one"
        )
    rate = rates[0] if isinstance(rates, list | tuple) and rates else rates
    if not isinstance(rate, int):
        raise DataError("a sound has no sample rate; give its condition one")
    return Audio(wave[..., : int(torch.as_tensor(length).reshape(-1)[0])].float(), rate)


def _joint(value: Any) -> Any:
    """A text, a sound, or both, as `clap` reads them."""
    texts = _field(value, "text", 1)
    text = _text(texts[0] if isinstance(texts, list | tuple) and texts else texts)
    sound = _sound((_field(value, "wav", 0), _field(value, "length", 2), _field(value, "sample_rate", 3)))
    both = {name: one for name, one in (("text", text), ("audio", sound)) if one is not None and one != []}
    return both if len(both) > 1 else next(iter(both.values()), None)


def _symbol(name: str, value: Any, chords: Sequence[str], rate: float) -> dict[str, Any]:
    """The chords and the melody of a symbolic condition, whichever it has."""
    numbers, melody = _field(value, "frame_chords", 0), _field(value, "melody", 1)
    found: dict[str, Any] = {}
    if name in ("chords", "frame_chords") and numbers is not None:
        found["frame_chords"] = _chart(torch.as_tensor(numbers).reshape(-1), chords, rate)
    if name == "melody" and isinstance(melody, Tensor):
        found["melody"] = melody if melody.any() else None
    return found


def _chart(numbers: Tensor, chords: Sequence[str], rate: float) -> list[tuple[float, float, str]] | None:
    """Runs of equal numbers as spans; the number after the last name is none."""
    if not chords:
        raise DataError("chords are given by number; give their names, `chords`, in the order of the numbers")
    if int(numbers.min()) < 0 or int(numbers.max()) > len(chords):
        raise DataError(f"chords lie between {int(numbers.min())} and {int(numbers.max())}, but {len(chords)} names are given")
    edges = [0, *(torch.nonzero(numbers.diff()).reshape(-1) + 1).tolist(), len(numbers)]
    runs = [(first, last, int(numbers[first])) for first, last in zip(edges, edges[1:], strict=False)]
    spans = [(first / rate, last / rate, chords[number]) for first, last, number in runs if number < len(chords)]
    return spans or None


def _field(value: Any, name: str, place: int) -> Any:
    """What a condition has by name, or by place where it is a bare tuple."""
    if hasattr(value, name):
        return getattr(value, name)
    return value[place] if isinstance(value, tuple) and place < len(value) else None
