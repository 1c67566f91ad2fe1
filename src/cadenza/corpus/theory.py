"""Keys, scales, chords and voice leading, as pitch classes and MIDI notes."""

from __future__ import annotations

from collections.abc import Collection
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


@dataclass(frozen=True)
class Key:
    """A tonic pitch class with a mode of the scale table."""

    tonic: int
    mode: str

    @property
    def tonality(self) -> str:
        """`major` or `minor`, by the third of the mode."""
        return "major" if 4 in SCALES[self.mode] else "minor"

    @property
    def name(self) -> str:
        """Name of the key in labels, such as `A# minor`."""
        return f"{TONICS[self.tonic]} {self.tonality}"

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """Seven pitch classes of the mode, from the tonic upwards."""
        return tuple((self.tonic + step) % 12 for step in SCALES[self.mode])


@dataclass(frozen=True)
class ChordSymbol:
    """A root pitch class with a quality of the chord table."""

    root: int
    quality: str

    @property
    def label(self) -> str:
        """Chord in Harte's syntax, such as `A:min` (Harte et al. 2005)."""
        return f"{TONICS[self.root]}:{self.quality}"

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """Root, third (or fourth), fifth and further tones as pitch classes."""
        return tuple((self.root + step) % 12 for step in QUALITIES[self.quality])


@cache
def chord_scale(key: Key, chord: ChordSymbol) -> tuple[int, ...]:
    """Pitch classes of the key, altered so that they include every tone of the chord."""
    scale = set(key.pitch_classes)
    tones = chord.pitch_classes
    for index, tone in enumerate(tones):
        if tone in scale:
            continue
        third = index == 1 and chord.quality in ("maj", "7", "maj7", "maj6")
        leading = index == 0 and chord.quality in ("dim", "hdim7")
        altered = (tone - 1) % 12 if third or leading else (tone + 1) % 12
        if altered not in tones:
            scale.discard(altered)
        scale.add(tone)
    return tuple(sorted(scale))


def pitches_in_range(classes: Collection[int], low: int, high: int) -> list[int]:
    """MIDI notes from low to high that have one of the pitch classes."""
    return [p for p in range(low, high + 1) if p % 12 in classes]


def nearest_pitch(classes: Collection[int], target: float, low: int, high: int) -> int:
    """MIDI note of one of the pitch classes that is nearest to a target within a range."""
    candidates = pitches_in_range(classes, low, high) or pitches_in_range(classes, low - 6, high + 6)
    return min(candidates, key=lambda p: (abs(p - target), p))


def close_voicings(chord: ChordSymbol, low: int, high: int) -> list[tuple[int, ...]]:
    """All close positions of a chord within a range."""
    tones = chord.pitch_classes
    voicings = []
    for inversion in range(len(tones)):
        order = tones[inversion:] + tones[:inversion]
        for bottom in pitches_in_range((order[0],), low, high):
            voicing = [bottom]
            for tone in order[1:]:
                voicing.append(voicing[-1] + ((tone - voicing[-1]) % 12 or 12))
            if voicing[-1] <= high:
                voicings.append(tuple(voicing))
    return voicings


def lead_voices(previous: tuple[int, ...] | None, chord: ChordSymbol, low: int, high: int) -> tuple[int, ...]:
    """Return the close position that moves the voices least from the previous chord."""
    candidates = close_voicings(chord, low, high) or close_voicings(chord, low - 5, high + 7)
    center = (low + high) / 2

    def cost(voicing: tuple[int, ...]) -> float:
        drift = abs(sum(voicing) / len(voicing) - center)
        if previous is None:
            return drift
        up = sum(min(abs(v - p) for p in previous) for v in voicing)
        down = sum(min(abs(v - p) for v in voicing) for p in previous)
        return up + down + 0.35 * drift

    return min(candidates, key=lambda v: (cost(v), v))
