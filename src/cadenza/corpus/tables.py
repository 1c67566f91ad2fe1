"""Load the tables of the composer: genres, instruments, musical patterns and caption phrases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

Split = Literal["train", "held_out"]
Weights = Mapping[str, float]
Register = tuple[int, int]  # lowest and highest MIDI note
Groove = Mapping[str, str]  # one bar of strokes for each drum
BassNote = tuple[float, float, str, int]  # start after the chord's and length in beats, chord tone, accent


@dataclass(frozen=True)
class PhraseSet:
    """Interchangeable phrases: those of training captions and those of held-out captions only."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def choose_split(self, *, held_out: bool) -> tuple[str, ...]:
        """Return the held-out phrases if requested and present, else the training phrases."""
        return self.held_out if held_out and self.held_out else self.train


@dataclass(frozen=True)
class TempoTerm:
    """Phrases for a tempo with the beats per minute of which they are true."""

    low: int
    high: int
    phrases: PhraseSet


@dataclass(frozen=True)
class Instrument:
    """A sound of the soundfont: program number, family, melody register and level correction in dB."""

    name: str
    program: int
    family: str
    register: Register
    trim: float = 0.0


@dataclass(frozen=True)
class Genre:
    """Choices of a genre with their weights; tables.yaml explains the fields."""

    name: str
    weight: float
    tempo: tuple[int, int]
    time_signatures: Weights
    harmony: str
    ensembles: Weights
    solos: Weights
    leads: Weights
    chords: Weights
    basses: Weights
    accompaniments: Weights
    bass_styles: Weights
    pads: Weights = field(default_factory=dict)
    drums: str | None = None
    kit: str = "standard kit"
    swing: float = 0.5
    swing_unit: float = 1.0
    density: Weights = field(default_factory=lambda: {"sparse": 1, "medium": 2, "busy": 1})
    syncopation: float = 0.0
    room: tuple[float, float] = (0.5, 1.0)
    moods: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class HarmonyStyle:
    """Progressions of a style as Roman numerals, for major and minor keys."""

    cadences: Mapping[str, tuple[str, ...]]
    loops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transitions: Mapping[str, Mapping[str, Weights]] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    final: Mapping[str, str] = field(default_factory=lambda: {"major": "I", "minor": "i"})


@dataclass(frozen=True)
class Tables:
    """All tables: of music by name, of phrases by caption field and value."""

    genres: Mapping[str, Genre]
    instruments: Mapping[str, Instrument]
    registers: Mapping[str, Mapping[str, Any]]  # "solo": registers by part; "chords" and "bass": one register
    moods: Mapping[str, Mapping[str, Weights]]  # by tonality and tempo class
    harmony: Mapping[str, HarmonyStyle]
    rhythms: Mapping[str, Mapping[str, tuple[tuple[float, ...], ...]]]  # by time signature and density
    bass_riffs: Mapping[str, tuple[tuple[BassNote, ...], ...]]
    drum_notes: Mapping[str, int]
    grooves: Mapping[str, Mapping[str, tuple[Groove, ...]]]  # by style and time signature
    fills: Mapping[str, tuple[Groove, ...]]  # by time signature
    phrases: Mapping[str, Mapping[str, PhraseSet]]
    tempo_terms: tuple[TempoTerm, ...]
    bpm: PhraseSet
    tonics: Mapping[str, tuple[str, ...]]
    templates: PhraseSet


@cache
def load_tables() -> Tables:
    """Read tables.yaml, once per process."""
    data = _to_tuples(yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8")))
    drums, captions = data["drums"], data["captions"]
    return Tables(
        genres={name: Genre(name, **entry) for name, entry in data["genres"].items()},
        instruments={
            name: Instrument(name, entry["program"], entry["family"], entry["range"], entry.get("trim", 0.0))
            for name, entry in data["instruments"].items()
        },
        registers=data["registers"],
        moods=data["moods"],
        harmony={name: HarmonyStyle(**entry) for name, entry in data["harmony"].items()},
        rhythms={
            name: {density: tuple(map(_parse_rhythm, bars)) for density, bars in entry.items()}
            for name, entry in data["rhythms"].items()
        },
        bass_riffs=data["bass_riffs"],
        drum_notes=drums["notes"],
        grooves=drums["grooves"],
        fills=drums["fills"],
        phrases={
            name: {value: PhraseSet(**entry) for value, entry in entries.items()}
            for name, entries in captions["phrases"].items()
        },
        tempo_terms=tuple(
            TempoTerm(*entry["range"], phrases=PhraseSet(entry["train"], entry.get("held_out", ())))
            for entry in captions["tempo"]
        ),
        bpm=PhraseSet(**captions["bpm"]),
        tonics=captions["tonics"],
        templates=PhraseSet(**captions["templates"]),
    )


def _to_tuples(value: Any) -> Any:
    """Return parsed YAML with tuples for its lists."""
    if isinstance(value, dict):
        return {key: _to_tuples(item) for key, item in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _parse_rhythm(text: str | int) -> tuple[float, ...]:
    """Return the lengths of a bar such as `2/3 1/3 1` in beats."""
    return tuple(float(Fraction(length)) for length in str(text).split())
