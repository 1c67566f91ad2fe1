"""Keys, scales, chords and voice leading as pitch classes and MIDI numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

SCALES: dict[str, tuple[int, ...]] = {
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}

QUALITIES: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dim": (0, 3, 6),
    "sus4": (0, 5, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "hdim7": (0, 3, 6, 10),
    "maj6": (0, 4, 7, 9),
}

_NUMERALS = {"i": 0, "ii": 1, "iii": 2, "iv": 3, "v": 4, "vi": 5, "vii": 6}
_MAJOR_STEPS = SCALES["ionian"]
_SUFFIXES = {
    "": "",
    "7": "7",
    "M7": "maj7",
    "o": "dim",
    "h7": "hdim7",
    "sus": "sus4",
    "6": "maj6",
}


@dataclass(frozen=True)
class Key:
    """A tonic pitch class with a mode of the scale table."""

    tonic: int
    mode: str

    @property
    def family(self) -> str:
        """`major` or `minor`, by the third of the mode."""
        return "major" if 4 in SCALES[self.mode] else "minor"

    @property
    def name(self) -> str:
        """The key as written in truth records, such as `A# minor`."""
        return f"{TONICS[self.tonic]} {self.family}"

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """The seven pitch classes of the mode, from the tonic upwards."""
        return tuple((self.tonic + step) % 12 for step in SCALES[self.mode])


@dataclass(frozen=True)
class Chord:
    """A root pitch class with a quality of the chord table."""

    root: int
    quality: str

    @property
    def label(self) -> str:
        """The chord in Harte's syntax, such as `A:min` (Harte et al. 2005)."""
        return f"{TONICS[self.root]}:{self.quality}"

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """Root, third (or fourth), fifth and further tones as pitch classes."""
        return tuple((self.root + step) % 12 for step in QUALITIES[self.quality])


@cache
def chord(key: Key, numeral: str) -> Chord:
    """The chord that a numeral such as `V7`, `bVII`, `iim` or `V/V` names in a key.

    A capital numeral is major, a small one minor; degrees are those of the key's own
    third, sixth and seventh, so `VI` in A minor is F major.
    """
    if "/" in numeral:
        upper, target = numeral.split("/")
        root = chord(key, target).root
        return chord(Key(root, "ionian"), upper)
    body = numeral.lstrip("b#")
    shift = numeral.count("#") - (len(numeral) - len(numeral.lstrip("b")))
    letters = "".join(c for c in body if c in "ivIV")
    suffix = body[len(letters) :]
    degree = _NUMERALS[letters.lower()]
    steps = SCALES[key.mode] if shift == 0 else _MAJOR_STEPS
    root = (key.tonic + steps[degree] + shift) % 12
    minor = letters.islower()
    if suffix == "o" and degree == 6:
        root = (key.tonic + 11) % 12
    if suffix in ("", "6") and minor:
        return Chord(root, "min")
    if suffix == "7" and minor:
        return Chord(root, "min7")
    return Chord(root, _SUFFIXES[suffix] or "maj")


@cache
def chord_scale(key: Key, current: Chord) -> tuple[int, ...]:
    """The key's pitch classes, bent so that every tone of the chord belongs to them."""
    scale = set(key.pitch_classes)
    tones = current.pitch_classes
    for place, tone in enumerate(tones):
        if tone in scale:
            continue
        third = place == 1 and current.quality in ("maj", "7", "maj7", "maj6")
        leading = place == 0 and current.quality in ("dim", "hdim7")
        bent = (tone - 1) % 12 if third or leading else (tone + 1) % 12
        if bent not in tones:
            scale.discard(bent)
        scale.add(tone)
    return tuple(sorted(scale))


def pitches(classes: tuple[int, ...], low: int, high: int) -> list[int]:
    """All MIDI numbers from low to high whose pitch class is among the given ones."""
    return [p for p in range(low, high + 1) if p % 12 in classes]


def nearest(classes: tuple[int, ...], target: float, low: int, high: int) -> int:
    """The MIDI number of one of the pitch classes nearest to a target within a range."""
    found = pitches(classes, low, high) or pitches(classes, low - 6, high + 6)
    return min(found, key=lambda p: (abs(p - target), p))


def voicings(current: Chord, low: int, high: int) -> list[tuple[int, ...]]:
    """All close positions of a chord that lie within a range."""
    tones = current.pitch_classes
    found = []
    for turn in range(len(tones)):
        order = tones[turn:] + tones[:turn]
        for bottom in pitches((order[0],), low, high):
            stack = [bottom]
            for tone in order[1:]:
                stack.append(stack[-1] + ((tone - stack[-1]) % 12 or 12))
            if stack[-1] <= high:
                found.append(tuple(stack))
    return found


def lead_voices(previous: tuple[int, ...] | None, current: Chord, low: int, high: int) -> tuple[int, ...]:
    """The close position that moves the voices least from the previous chord."""
    candidates = voicings(current, low, high) or voicings(current, low - 5, high + 7)
    centre = (low + high) / 2

    def cost(voicing: tuple[int, ...]) -> float:
        drift = abs(sum(voicing) / len(voicing) - centre)
        if previous is None:
            return drift
        up = sum(min(abs(v - p) for p in previous) for v in voicing)
        down = sum(min(abs(v - p) for v in voicing) for p in previous)
        return up + down + 0.35 * drift

    return min(candidates, key=lambda v: (cost(v), v))
