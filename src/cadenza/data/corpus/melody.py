"""Melodies: rhythmic motifs that return, bent to the chords, along an arch that ends at home."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .chance import between, flip, pick, wobble
from .piece import Note, Plan, Span
from .theory import chord_scale, nearest, pitches

T = 1 / 3
Cell = tuple[float, ...]

CELLS: dict[tuple[str, str], tuple[Cell, ...]] = {
    ("4/4", "sparse"): ((2, 2), (3, 1), (2, 1, 1), (1, 1, 2), (1.5, 0.5, 2)),
    ("4/4", "medium"): (
        (1, 1, 1, 1), (1.5, 0.5, 1, 1), (1, 0.5, 0.5, 2), (1, 0.5, 0.5, 1, 1),
        (0.5, 0.5, 1, 2), (1.5, 0.5, 1.5, 0.5), (2, 0.5, 0.5, 1), (1, 1, 0.5, 0.5, 1),
    ),
    ("4/4", "busy"): (
        (0.5,) * 8, (0.5, 0.5, 1, 0.5, 0.5, 1), (0.75, 0.25, 0.5, 0.5, 1, 1), (1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
        (0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 1), (0.5, 0.5, 0.5, 0.5, 1, 0.5, 0.5), (0.25, 0.25, 0.5, 1, 0.25, 0.25, 0.5, 1),
    ),
    ("3/4", "sparse"): ((3,), (2, 1), (1, 2), (1.5, 1.5)),
    ("3/4", "medium"): ((1, 1, 1), (2, 0.5, 0.5), (1.5, 0.5, 1), (1, 0.5, 0.5, 1), (2, 1), (1, 1, 0.5, 0.5)),
    ("3/4", "busy"): ((0.5,) * 6, (1, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 1, 1), (0.5, 0.5, 0.5, 0.5, 1), (0.75, 0.25, 1,
        0.5, 0.5)),
    ("6/8", "sparse"): ((1, 1), (2 * T, T, 1), (1, 2 * T, T)),
    ("6/8", "medium"): ((2 * T, T, 2 * T, T), (T, T, T, 1), (1, T, T, T), (2 * T, T, 1), (1, 2 * T, T)),
    ("6/8", "busy"): ((T,) * 6, (T, T, T, 2 * T, T), (2 * T, T, T, T, T), (T / 2, T / 2, T, T, 2 * T, T)),
}  # fmt: skip

SYNCOPATED: dict[str, tuple[Cell, ...]] = {
    "sparse": ((1.5, 2.5), (1.5, 0.5, 2), (-1, 1, 2)),
    "medium": ((1.5, 1.5, 1), (0.5, 1, 0.5, 2), (-0.5, 0.5, 1, 0.5, 1.5), (0.75, 0.75, 0.5, 2), (1, 0.5, 1, 1.5)),
    "busy": (
        (0.5, 1, 0.5, 0.5, 1, 0.5), (-0.5, 0.5, 0.5, 0.5, 0.5, 1, 0.5), (0.75, 0.75, 0.5, 0.75, 0.75, 0.5),
        (0.25, 0.25, 0.5, 0.5, 0.25, 0.25, -0.5, 0.5, 1), (0.5, 0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    ),
}  # fmt: skip

CLOSES: dict[str, tuple[Cell, ...]] = {
    "4/4": ((1, 1, 2), (0.5, 0.5, 1, 2), (2, 2), (1, 0.5, 0.5, 2), (1, 3)),
    "3/4": ((1, 2), (3,), (0.5, 0.5, 2), (1.5, 0.5, 1)),
    "6/8": ((T, T, T, 1), (2 * T, T, 1), (1, 1)),
}

FORMS = ("ABAC", "AABC", "ABAB", "AABA", "ABCA")
STRONG = {"4/4": (0, 2), "3/4": (0,), "6/8": (0, 1)}


@dataclass(frozen=True)
class Motif:
    """One bar's rhythm in beats, rests negative, with a contour in scale steps."""

    rhythm: Cell
    contour: tuple[int, ...]


def _motif(plan: Plan, rng: np.random.Generator, *, closing: bool = False) -> Motif:
    metre = plan.metre.name
    if closing:
        cells = CLOSES[metre]
    elif metre == "4/4" and flip(rng, plan.genre.syncopation):
        cells = SYNCOPATED[plan.density]
    else:
        cells = CELLS[metre, plan.density]
    shortest = 0.11 / plan.beat_seconds
    rhythm = pick(rng, [c for c in cells if min(map(abs, c)) >= shortest] or CELLS[metre, "medium"])
    place, contour = 0, []
    for _ in rhythm:
        contour.append(place)
        place += pick(rng, (-2, -1, -1, 1, 1, 2, 0, 3 if place < 0 else -3))
        place = max(-4, min(4, place))
    return Motif(rhythm, tuple(contour))


def _bars(plan: Plan, rng: np.random.Generator) -> list[Motif]:
    """A motif for each bar that the melody fills before its final note."""
    count = math.ceil(plan.final_beat / plan.metre.beats)
    phrase = 4 if plan.bars >= 7 else 2
    form = pick(rng, FORMS)
    letters = {letter: _motif(plan, rng) for letter in "ABC"}
    bars = []
    for bar in range(count):
        closes = (bar + 1) % phrase == 0 and bar + 1 < count
        bars.append(_motif(plan, rng, closing=True) if closes else letters[form[bar % 4]])
    return bars


class _Line:
    """Chooses pitches one by one, remembering what the last two did."""

    def __init__(self, plan: Plan, low: int, high: int, rng: np.random.Generator) -> None:
        self.plan, self.low, self.high, self.rng = plan, low, high, rng
        self.last: int | None = None
        self.move = 0
        self.loose = False

    def choose(self, span: Span, wanted: float, *, strong: bool) -> int:
        """A pitch near the wanted one that fits the chord and follows from the last pitch."""
        tones = span.chord.pitch_classes[: 3 if self.last is None else 4]
        scale = tones if strong else chord_scale(self.plan.key, span.chord)
        best, least = nearest(tones, wanted, self.low, self.high), math.inf
        for p in pitches(scale, self.low, self.high):
            cost = self._cost(p, wanted, p % 12 in tones)
            if cost < least:
                best, least = p, cost
        self._take(best, best % 12 in tones)
        return best

    def close(self, span: Span) -> int:
        """The tonic, or now and then another tone of the last chord, near the last pitch."""
        tones = span.chord.pitch_classes
        chosen = tones[:1] if flip(self.rng, 0.8) else tones[1:3]
        return nearest(chosen, self.last if self.last is not None else (self.low + self.high) / 2, self.low, self.high)

    def _cost(self, p: int, wanted: float, inside: bool) -> float:
        cost = 0.6 * abs(p - wanted) + 0.6 * self.rng.random()
        if self.last is None:
            return cost if inside else math.inf
        leap = p - self.last
        size = abs(leap)
        cost += (0.9, 0, 0, 0.5, 0.6, 1.0, 2.5, 1.6)[size] if size < 8 else 0.5 * size
        cost += 1.5 if leap == 0 and self.move == 0 else 0
        if abs(self.move) > 4 and leap * self.move > 0:
            cost += 1.5
        if not inside:
            cost += 0.4 if 0 < size <= 2 else 50
        if self.loose:
            cost += 0 if 0 < size <= 2 else 6
        return cost

    def _take(self, p: int, inside: bool) -> None:
        self.move = 0 if self.last is None else p - self.last
        self.last, self.loose = p, not inside


def melody(plan: Plan, spans: tuple[Span, ...], register: tuple[int, int], rng: np.random.Generator) -> list[Note]:
    """A single line for the lead within a register, from the first beat to the last chord."""
    low, high = register
    centre = (low + high) / 2 + wobble(rng, 1.5)
    low, high = max(low, round(centre) - 10), min(high, round(centre) + 10)
    arch, peak = between(rng, 2.5, 5.0), between(rng, 0.45, 0.75)
    line = _Line(plan, low, high, rng)
    legato = 0.6 if plan.mood in ("playful", "groovy", "majestic") else 0.95
    notes: list[Note] = []
    for bar, motif in enumerate(_bars(plan, rng)):
        beat = float(bar * plan.metre.beats)
        for length, step in zip(motif.rhythm, motif.contour, strict=True):
            last_beat = plan.final_beat - beat
            if last_beat <= 1e-6:
                break
            if length > 0 or beat == 0:
                size = min(abs(length), last_beat)
                span = next(s for s in spans if s.start <= beat + 1e-6 < s.end)
                inside = beat % plan.metre.beats
                strong = any(abs(inside - s) < 1e-6 for s in STRONG[plan.metre.name]) or size >= 1
                along = beat / plan.final_beat
                rise = along / peak if along < peak else (1 - along) / (1 - peak)
                wanted = centre - 2 + arch * math.sin(rise * math.pi / 2) + 1.7 * step
                pitch = line.choose(span, wanted, strong=strong)
                hold = size * (legato if size < 1.5 else max(legato, 0.9))
                notes.append(Note(beat, hold, pitch, 0, "melody"))
            beat += abs(length)
    final = float(plan.final_beat)
    notes.append(Note(final, plan.beats - final + 0.5, line.close(spans[-1]), 0, "melody"))
    return notes


def thirds(plan: Plan, spans: tuple[Span, ...], lead: list[Note], floor: int) -> list[Note]:
    """A second voice of chord tones a third to a ninth below the melody's long notes."""
    found = []
    for note in lead:
        if note.length < 0.9 or note.start >= plan.final_beat:
            continue
        span = next(s for s in spans if s.start <= note.start + 1e-6 < s.end)
        below = [p for p in pitches(span.chord.pitch_classes, max(floor, note.pitch - 9), note.pitch - 3)]
        if below:
            found.append(Note(note.start, note.length, below[-1], 0, "chords"))
    return found
