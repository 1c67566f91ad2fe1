"""A composed piece: its plan, its parts and its notes in beats."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .genres import Genre
from .instruments import Instrument
from .theory import Chord, Key

MAX_DELAY = 0.03


@dataclass(frozen=True)
class Metre:
    """A time signature with its beats a bar and the equal parts into which a beat is felt."""

    name: str
    beats: int
    parts: int


METRES = {
    "4/4": Metre("4/4", 4, 2),
    "3/4": Metre("3/4", 3, 2),
    "6/8": Metre("6/8", 2, 3),
}


@dataclass(frozen=True)
class Part:
    """An instrument with the role it plays: melody, chords, bass, pad or drums."""

    role: str
    instrument: Instrument


@dataclass(frozen=True)
class Span:
    """A chord that sounds from one beat to another."""

    start: float
    end: float
    chord: Chord


@dataclass(frozen=True)
class Note:
    """A note in beats, with its role and a delay in seconds that makes it human."""

    start: float
    length: float
    pitch: int
    velocity: int
    role: str
    delay: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first note is written."""

    genre: Genre
    key: Key
    bpm: int
    metre: Metre
    bars: int
    ensemble: str
    parts: tuple[Part, ...]
    accompaniment: str
    bass_style: str
    mood: str
    dynamics: str
    density: str

    @property
    def beat_seconds(self) -> float:
        """The length of a beat."""
        return 60.0 / self.bpm

    @property
    def bar_seconds(self) -> float:
        """The length of a bar."""
        return self.metre.beats * self.beat_seconds

    @property
    def beats(self) -> int:
        """The beats in all bars."""
        return self.bars * self.metre.beats

    @property
    def final_beat(self) -> int:
        """The beat on which the last chord falls: inside the last bar where bars are long."""
        long_bar = self.bar_seconds > 2.2
        return self.beats - self.metre.beats + (math.ceil(self.metre.beats / 2) if long_bar else 0)

    @property
    def tail_seconds(self) -> float:
        """The time after the last bar in which the last chord dies away."""
        return 0.8

    @property
    def seconds(self) -> float:
        """The length of the audio, in whole milliseconds."""
        return round(self.beats * self.beat_seconds + self.tail_seconds, 3)

    def part(self, role: str) -> Part | None:
        """The first part with a role, if the piece has one."""
        return next((p for p in self.parts if p.role == role), None)

    def when(self, beat: float) -> float:
        """The second at which a beat falls, off-beats swung as the genre has it."""
        swing, unit = self.genre.swing, self.genre.swing_unit
        if swing == 0.5 or self.metre.parts == 3:
            return beat * self.beat_seconds
        whole, part = divmod(beat / unit + 1e-9, 1.0)
        bent = part * swing / 0.5 if part < 0.5 else swing + (part - 0.5) * (1 - swing) / 0.5
        return (whole + bent) * unit * self.beat_seconds


@dataclass(frozen=True)
class Piece:
    """A plan carried out: chords that cover every beat and notes in order of time."""

    plan: Plan
    spans: tuple[Span, ...]
    notes: tuple[Note, ...]

    def chord_at(self, beat: float) -> Chord:
        """The chord that sounds at a beat."""
        return next((s.chord for s in self.spans if s.start <= beat + 1e-6 < s.end), self.spans[-1].chord)

    def times(self, note: Note) -> tuple[float, float]:
        """The start and end of a note in seconds, in whole milliseconds."""
        plan = self.plan
        latest = plan.seconds - 0.25
        start = round(max(0.0, plan.when(note.start) + note.delay), 3)
        end = plan.when(note.start + note.length) + note.delay
        return start, round(min(max(end, start + 0.05), max(latest, start + 0.05)), 3)
