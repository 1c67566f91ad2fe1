"""Bass lines: each style walks from root to root in its own way."""

from __future__ import annotations

import numpy as np

from .chance import flip, pick
from .piece import Note, Plan, Span
from .theory import chord_scale, nearest, pitches

Tone = tuple[float, float, str, int]
# A start after the chord's and a length in beats, the tone, and an accent in velocity.

FUNK = (
    (
        (0, 0.45, "root", 8), (0.75, 0.2, "root", -4), (1.5, 0.2, "octave", 2),
        (2.25, 0.2, "fifth", -2), (2.5, 0.4, "seventh", 0), (3.5, 0.3, "root", 0),
    ),
    (
        (0, 0.6, "root", 8), (1.5, 0.3, "root", 0), (1.75, 0.2, "octave", 4),
        (2.5, 0.3, "root", 0), (3.0, 0.3, "fifth", 0), (3.5, 0.3, "octave", 2),
    ),
    (
        (0, 0.3, "root", 8), (0.5, 0.3, "root", 0), (1.25, 0.2, "octave", 2), (2, 0.3, "root", 4),
        (2.75, 0.2, "fifth", 0), (3.25, 0.2, "seventh", 0), (3.5, 0.4, "octave", 2),
    ),
)  # fmt: skip
SYNCOPATED = (
    ((0, 1.4, "root", 6), (1.5, 0.9, "root", 0), (2.5, 1.2, "fifth", 0)),
    ((0, 1.0, "root", 6), (1.75, 0.25, "root", -4), (2, 1.2, "octave", 2), (3.5, 0.4, "fifth", -2)),
)


def _tone(span: Span, name: str, root: int, high: int) -> int:
    tones = span.chord.pitch_classes
    fifth = (tones[2] - tones[0]) % 12
    steps = {"root": 0, "fifth": fifth, "octave": 12, "seventh": 10 if span.chord.quality != "maj7" else 11, "sixth": 9}
    pitch = root + steps[name]
    return pitch - 12 if pitch > high else pitch


def _figure(plan: Plan, span: Span, riff: tuple[Tone, ...] | None, bar: int) -> list[Tone]:
    """The tones that a patterned style plays within one chord."""
    size, part = span.end - span.start, 1 / plan.metre.parts
    style = plan.bass_style
    if style == "long":
        pulse = 2.0 if plan.metre.beats == 4 and plan.beat_seconds < 0.8 and size >= 4 else size
        figure = [(i * pulse, pulse * 0.97, "root", 0) for i in range(round(size / pulse))]
    elif style == "root-fifth":
        half = 2.0 if plan.metre.beats != 2 else 1.0
        figure = [(0.0, min(half, size) * 0.95, "root", 4), (half, (size - half) * 0.9, "fifth", 0)]
    elif style == "oom":
        alternate = "fifth" if bar % 2 and plan.metre.beats == 3 else "root"
        second = {4: 2.0, 3: 9.0, 2: 1.0}[plan.metre.beats]
        figure = [(0.0, 0.8, alternate, 5), (second, 0.8, "fifth", 2)]
    elif style in ("eighths", "shuffle"):
        order = ["root"] if style == "eighths" else ["root", "root", "fifth", "sixth"]
        figure = [
            (i * part, part * 0.85, order[i % len(order)], 4 if i % plan.metre.parts == 0 else -4)
            for i in range(round(size / part))
        ]
    elif style == "offbeat":
        figure = [(i + 0.5, 0.42, "root", 2) for i in range(int(size))]
        figure.insert(0, (0.0, 0.4, "root", 4))
    else:
        figure = list(riff or ())
    return [f for f in figure if f[0] < size - 1e-6]


def _walk(
    plan: Plan, span: Span, following: Span, start: int, register: tuple[int, int], rng: np.random.Generator
) -> list[int]:
    """One pitch a beat: the root, then scale and chord tones that approach the next root."""
    low, high = register
    count = max(1, round(span.end - span.start))
    goal = nearest((following.chord.root,), start, low, high)
    line = [start]
    scale = chord_scale(plan.key, span.chord)
    for i in range(1, count):
        here = line[-1]
        if i == count - 1:
            near = [goal - 1, goal + 1, goal - 2, goal + 2]
            options = [p for p in near if p % 12 in scale and p != here] or near[:2]
        elif i == 2 or plan.bass_style == "walking" and flip(rng, 0.5):
            options = [p for p in pitches(span.chord.pitch_classes, here - 7, here + 7) if p != here]
        else:
            options = [p for p in pitches(scale, here - 3, here + 3) if p != here]
        options = [p for p in options if low <= p <= high] or [here]
        line.append(min(options, key=lambda p: abs(p - goal) * 0.3 + abs(p - here) * 0.2 + rng.random() * 1.5))
    return line


def bass_line(plan: Plan, spans: tuple[Span, ...], register: tuple[int, int], rng: np.random.Generator) -> list[Note]:
    """A bass part for a whole piece, ending on a long root."""
    low, high = register
    riff = pick(rng, FUNK if plan.bass_style == "funk" else SYNCOPATED)
    notes: list[Note] = []
    last = low + (high - low) * 0.4
    for place, span in enumerate(spans):
        root = nearest((span.chord.root,), 0.6 * last + 0.4 * (low + 5), low, min(high, low + 14))
        last = root
        if span is spans[-1]:
            notes.append(Note(span.start, span.end - span.start + 0.4, root, 2, "bass"))
        elif plan.bass_style in ("walking", "beats") and plan.metre.parts == 2:
            walk = _walk(plan, span, spans[place + 1], root, register, rng)
            notes += [Note(span.start + i, 0.92, p, 4 if i == 0 else 0, "bass") for i, p in enumerate(walk)]
            last = walk[-1]
        elif plan.bass_style in ("walking", "beats"):
            notes += [Note(span.start + i, 0.9, root, 2, "bass") for i in range(round(span.end - span.start))]
        else:
            bar = int(span.start // plan.metre.beats)
            for at, length, name, accent in _figure(plan, span, riff, bar):
                size = min(length, span.end - span.start - at)
                notes.append(Note(span.start + at, size, _tone(span, name, root, high), accent, "bass"))
    return notes
