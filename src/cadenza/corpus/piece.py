"""A composed piece in beats and seconds, and the random draws that it is made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np

from .tables import Genre, Instrument
from .theory import ChordSymbol, Key

T = TypeVar("T")
TAIL_SECONDS = 0.8  # after the last bar, in which the last chord decays


@dataclass(frozen=True)
class TimeSignature:
    """A time signature with its beats per bar and the equal parts into which a beat is divided."""

    name: str
    beats: int
    subdivision: int


TIME_SIGNATURES = {name: TimeSignature(name, *rest) for name, *rest in (("4/4", 4, 2), ("3/4", 3, 2), ("6/8", 2, 3))}


@dataclass(frozen=True)
class InstrumentPart:
    """An instrument with its role: melody, chords, bass, pad or drums."""

    role: str
    instrument: Instrument


@dataclass(frozen=True)
class ChordSegment:
    """A chord from one beat to another."""

    start: float
    end: float
    chord: ChordSymbol

    @property
    def beats(self) -> float:
        """Length in beats."""
        return self.end - self.start


@dataclass(frozen=True)
class Note:
    """A note in beats, with its role and a delay in seconds as of a human player."""

    start: float
    length: float
    pitch: int
    velocity: int
    role: str
    delay: float = 0.0


@dataclass(frozen=True)
class PiecePlan:
    """All decisions that precede the notes."""

    genre: Genre
    key: Key
    bpm: int
    time_signature: TimeSignature
    bars: int
    ensemble: str
    parts: tuple[InstrumentPart, ...]
    accompaniment: str
    bass_style: str
    mood: str
    dynamics: str
    density: str

    @property
    def beats_per_bar(self) -> int:
        """Beats per bar."""
        return self.time_signature.beats

    @property
    def subdivision(self) -> int:
        """Equal parts of a beat: 2, or 3 in 6/8."""
        return self.time_signature.subdivision

    @property
    def beat_seconds(self) -> float:
        """Length of a beat."""
        return 60.0 / self.bpm

    @property
    def bar_seconds(self) -> float:
        """Length of a bar."""
        return self.beats_per_bar * self.beat_seconds

    @property
    def beats(self) -> int:
        """Number of beats of all bars."""
        return self.bars * self.beats_per_bar

    @property
    def final_beat(self) -> int:
        """Beat of the last chord, which is inside the last bar if bars are long."""
        long_bar = self.bar_seconds > 2.2
        return self.beats - self.beats_per_bar + (math.ceil(self.beats_per_bar / 2) if long_bar else 0)

    @property
    def seconds(self) -> float:
        """Length of the audio, in whole milliseconds."""
        return round(self.beats * self.beat_seconds + TAIL_SECONDS, 3)

    def find_part(self, role: str) -> InstrumentPart | None:
        """Return the first part with a role, or None."""
        return next((p for p in self.parts if p.role == role), None)

    def beat_to_seconds(self, beat: float) -> float:
        """Return the time of a beat, with off-beats delayed by the swing of the genre."""
        swing, unit = self.genre.swing, self.genre.swing_unit
        if swing == 0.5 or self.subdivision == 3:
            return beat * self.beat_seconds
        whole, part = divmod(beat / unit + 1e-9, 1.0)
        swung = part * swing / 0.5 if part < 0.5 else swing + (part - 0.5) * (1 - swing) / 0.5
        return (whole + swung) * unit * self.beat_seconds


@dataclass(frozen=True)
class Piece:
    """A plan with the chords of all its beats, and notes in order of time."""

    plan: PiecePlan
    segments: tuple[ChordSegment, ...]
    notes: tuple[Note, ...]

    def note_to_seconds(self, note: Note) -> tuple[float, float]:
        """Return the start and end of a note in seconds, in whole milliseconds."""
        plan = self.plan
        latest = plan.seconds - 0.25
        start = round(max(0.0, plan.beat_to_seconds(note.start) + note.delay), 3)
        end = plan.beat_to_seconds(note.start + note.length) + note.delay
        return start, round(min(max(end, start + 0.05), max(latest, start + 0.05)), 3)


class RandomStream(IntEnum):
    """Independent random streams of a clip."""

    COMPOSE = 0
    CAPTIONS = 1
    ROOM = 2


def random_stream(seed: int, index: int, purpose: RandomStream) -> np.random.Generator:
    """Return the random generator for one purpose of clip `index` in a corpus."""
    return np.random.default_rng([seed, index, int(purpose)])


# The draws below use only `rng.random()`, whose values are the same in all versions of numpy.


def choice(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one of the items, all equally likely."""
    return items[int(rng.random() * len(items))]


def weighted_choice(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """Return one of the keys, with probability proportional to its weight."""
    point = rng.random() * sum(weights.values())
    for item, weight in weights.items():
        point -= weight
        if point < 0:
            return item
    return list(weights)[-1]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number from the uniform distribution between low and high."""
    return low + (high - low) * rng.random()


def bernoulli(rng: np.random.Generator, probability: float) -> bool:
    """Return True with the given probability."""
    return bool(rng.random() < probability)


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Return the items in random order."""
    order = sorted(range(len(items)), key=[rng.random() for _ in items].__getitem__)
    return [items[i] for i in order]


def truncated_normal(rng: np.random.Generator, width: float) -> float:
    """Return a number from a bell curve around zero that stays within three widths."""
    return (rng.random() + rng.random() + rng.random() - 1.5) * 2 * width
