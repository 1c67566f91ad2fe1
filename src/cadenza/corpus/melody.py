"""Melodies: rhythmic motifs that repeat, fitted to the chords, along an arch that ends on the tonic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .piece import ChordSegment, Note, PiecePlan, bernoulli, choice, truncated_normal, uniform
from .tables import Register, load_tables
from .theory import chord_scale, nearest_pitch, pitches_in_range

FORMS = ("ABAC", "AABC", "ABAB", "AABA", "ABCA")
STRONG_BEATS = {"4/4": (0, 2), "3/4": (0,), "6/8": (0, 1)}
# Cost of an interval by its size in semitones, from the unison to the fifth; larger ones cost 0.5 per semitone.
INTERVAL_COSTS = (0.9, 0, 0, 0.5, 0.6, 1.0, 2.5, 1.6)


@dataclass(frozen=True)
class Motif:
    """Rhythm of one bar in beats, rests negative, with a contour in scale steps."""

    rhythm: tuple[float, ...]
    contour: tuple[int, ...]


def compose_melody(
    plan: PiecePlan, segments: Sequence[ChordSegment], register: Register, rng: np.random.Generator
) -> list[Note]:
    """Compose a single line within a register, from the first beat to the last chord."""
    low, high = register
    center = (low + high) / 2 + truncated_normal(rng, 1.5)
    low, high = max(low, round(center) - 10), min(high, round(center) + 10)
    arch, peak = uniform(rng, 2.5, 5.0), uniform(rng, 0.45, 0.75)
    pitches = _PitchSequence(plan, low, high, rng)
    legato = 0.6 if plan.mood in ("playful", "groovy", "majestic") else 0.95
    notes: list[Note] = []
    for bar, motif in enumerate(_compose_motifs(plan, rng)):
        beat = float(bar * plan.beats_per_bar)
        for length, step in zip(motif.rhythm, motif.contour, strict=True):
            remaining = plan.final_beat - beat
            if remaining <= 1e-6:
                break
            if length > 0 or beat == 0:
                size = min(abs(length), remaining)
                beat_in_bar = beat % plan.beats_per_bar
                strong = size >= 1 or any(abs(beat_in_bar - s) < 1e-6 for s in STRONG_BEATS[plan.time_signature.name])
                progress = beat / plan.final_beat
                rise = progress / peak if progress < peak else (1 - progress) / (1 - peak)
                target = center - 2 + arch * math.sin(rise * math.pi / 2) + 1.7 * step
                pitch = pitches.append_near(target, _find_segment(segments, beat), strong=strong)
                hold = size * (legato if size < 1.5 else max(legato, 0.9))
                notes.append(Note(beat, hold, pitch, 0, "melody"))
            beat += abs(length)
    final = float(plan.final_beat)
    notes.append(Note(final, plan.beats - final + 0.5, pitches.choose_last(segments[-1]), 0, "melody"))
    return notes


def compose_second_voice(plan: PiecePlan, segments: Sequence[ChordSegment], melody: Sequence[Note], low: int) -> list[Note]:
    """Compose chord tones a third to a ninth below the long notes of a melody."""
    notes = []
    for note in melody:
        if note.length >= 0.9 and note.start < plan.final_beat:
            tones = _find_segment(segments, note.start).chord.pitch_classes
            below = pitches_in_range(tones, max(low, note.pitch - 9), note.pitch - 3)
            notes += [Note(note.start, note.length, pitch, 0, "chords") for pitch in below[-1:]]
    return notes


def _find_segment(segments: Sequence[ChordSegment], beat: float) -> ChordSegment:
    return next(s for s in segments if s.start <= beat + 1e-6 < s.end)


def _compose_motifs(plan: PiecePlan, rng: np.random.Generator) -> list[Motif]:
    """Return a motif for each bar before the final note."""
    count = math.ceil(plan.final_beat / plan.beats_per_bar)
    phrase = 4 if plan.bars >= 7 else 2
    form = choice(rng, FORMS)
    letters = {letter: _compose_motif(plan, rng) for letter in "ABC"}
    motifs = []
    for bar in range(count):
        closing = (bar + 1) % phrase == 0 and bar + 1 < count
        motifs.append(_compose_motif(plan, rng, closing=True) if closing else letters[form[bar % 4]])
    return motifs


def _compose_motif(plan: PiecePlan, rng: np.random.Generator, *, closing: bool = False) -> Motif:
    name, rhythms = plan.time_signature.name, load_tables().rhythms
    if closing:
        bars = rhythms[name]["closing"]
    elif name == "4/4" and bernoulli(rng, plan.genre.syncopation):
        bars = rhythms["4/4 syncopated"][plan.density]
    else:
        bars = rhythms[name][plan.density]
    shortest = 0.11 / plan.beat_seconds
    rhythm = choice(rng, [bar for bar in bars if min(map(abs, bar)) >= shortest] or rhythms[name]["medium"])
    step, contour = 0, []
    for _ in rhythm:
        contour.append(step)
        step += choice(rng, (-2, -1, -1, 1, 1, 2, 0, 3 if step < 0 else -3))
        step = max(-4, min(4, step))
    return Motif(rhythm, tuple(contour))


class _PitchSequence:
    """Pitches of a melody, each chosen by its distance to a target and to the pitches before it."""

    def __init__(self, plan: PiecePlan, low: int, high: int, rng: np.random.Generator) -> None:
        self.plan, self.low, self.high, self.rng = plan, low, high, rng
        self.last: int | None = None
        self.interval = 0  # between the last two pitches
        self.unresolved = False  # the last pitch is not a chord tone

    def append_near(self, target: float, segment: ChordSegment, *, strong: bool) -> int:
        """Append the pitch of least cost, a chord tone if `strong`, and return it."""
        tones = segment.chord.pitch_classes[: 3 if self.last is None else 4]
        scale = tones if strong else chord_scale(self.plan.key, segment.chord)
        best, least = nearest_pitch(tones, target, self.low, self.high), math.inf
        for pitch in pitches_in_range(scale, self.low, self.high):
            cost = self._cost(pitch, target, pitch % 12 in tones)
            if cost < least:
                best, least = pitch, cost
        self.interval = 0 if self.last is None else best - self.last
        self.last, self.unresolved = best, best % 12 not in tones
        return best

    def choose_last(self, segment: ChordSegment) -> int:
        """Return a pitch near the last one: the root of the chord, or with 20 % another tone."""
        tones = segment.chord.pitch_classes
        classes = tones[:1] if bernoulli(self.rng, 0.8) else tones[1:3]
        return nearest_pitch(classes, self.last if self.last is not None else (self.low + self.high) / 2, self.low, self.high)

    def _cost(self, pitch: int, target: float, chord_tone: bool) -> float:
        cost = 0.6 * abs(pitch - target) + 0.6 * self.rng.random()
        if self.last is None:
            return cost if chord_tone else math.inf
        interval = pitch - self.last
        size = abs(interval)
        cost += INTERVAL_COSTS[size] if size < len(INTERVAL_COSTS) else 0.5 * size
        if interval == 0 and self.interval == 0:
            cost += 1.5
        if abs(self.interval) > 4 and interval * self.interval > 0:  # a second leap in the same direction
            cost += 1.5
        if not chord_tone:
            cost += 0.4 if 0 < size <= 2 else 50
        if self.unresolved:
            cost += 0 if 0 < size <= 2 else 6
        return cost
