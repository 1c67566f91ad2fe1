"""Chordal accompaniments: each style turns chords into notes in its own pattern."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .chance import flip, pick
from .piece import Note, Plan, Span
from .theory import lead_voices

Voicing = tuple[int, ...]
# A start after the chord's and a length, both in beats, pitches, and an accent in velocity.
Hit = tuple[float, float, Voicing, int]


def _step(plan: Plan) -> float:
    """The part of a beat in which broken chords move, between 0.15 and 0.5 seconds long."""
    if plan.metre.parts == 3:
        return 1 / 3
    step = 0.5
    if plan.density == "busy" and plan.beat_seconds * 0.25 >= 0.16:
        step = 0.25
    if plan.density == "sparse" and plan.beat_seconds <= 0.6:
        step = 1.0
    return 1.0 if plan.beat_seconds * step < 0.15 else step


def _run(span: Span, step: float, order: list[Voicing], ring: float) -> list[Hit]:
    hits = []
    count = round((span.end - span.start) / step)
    for i in range(count):
        on_beat = abs((i * step) % 1.0) < 1e-6
        hits.append((i * step, step * ring, order[i % len(order)], 4 if on_beat else -3))
    return hits


def arpeggio(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Up and down through the chord with its lowest tone doubled on top."""
    up = [*v[:3], v[0] + 12]
    order = [(p,) for p in (*up, *up[-2:0:-1])]
    return _run(span, _step(plan), order, 1.8)


def sixteenth_arpeggio(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """A machine-like run of sixteenths."""
    step = 0.25 if plan.beat_seconds * 0.25 >= 0.1 else 0.5
    order = [(v[0],), (v[1],), (v[2],), (v[0] + 12,)]
    return _run(span, step, order, 0.8)


def broken(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """The lowest tone, then the others together."""
    third = plan.metre.parts == 3 or plan.metre.beats == 3
    order = [(v[0],), v[1:3], v[1:3]] if third else [(v[0],), v[1:3]]
    return _run(span, 1.0 if plan.metre.beats == 3 else _step(plan), order, 1.1)


def alberti(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Low, high, middle, high."""
    if plan.metre.parts == 3:
        return _run(span, 1 / 3, [(v[0],), (v[1],), (v[2],)], 1.0)
    return _run(span, _step(plan), [(v[0],), (v[2],), (v[1],), (v[2],)], 1.0)


def block(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """The whole chord, struck again every second beat."""
    pulse = 1.0 if plan.metre.beats == 2 or plan.density == "busy" else 2.0 if plan.metre.beats == 4 else 3.0
    return _run(span, min(pulse, span.end - span.start), [v], 0.97)


def beats(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """The whole chord on every beat."""
    return _run(span, 1.0, [v], 0.97)


def strum(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Down and up strokes over five strings."""
    wide = tuple(sorted({*v, v[0] + 12, v[1] + 12}))[:5]
    high = wide[-3:]
    if plan.metre.parts == 3:
        strokes = [(0, wide, 8), (2 / 3, high, -6), (1, wide, 4), (5 / 3, high, -6)]
    elif plan.metre.beats == 3:
        strokes = [(0, wide, 8), (1, wide, 0), (1.5, high, -8), (2, wide, 0), (2.5, high, -8)]
    else:
        strokes = [(0, wide, 8), (1, wide, 0), (1.5, high, -8), (2, wide, 2), (2.5, high, -8), (3, wide, 0), (3.5, high, -8)]
        if plan.density == "busy":
            strokes.insert(1, (0.5, high, -10))
    size = span.end - span.start
    kept = [s for s in strokes if s[0] < size - 1e-6]
    ends = [s[0] for s in kept[1:]] + [size]
    return [(at, (end - at) * 0.95, p, accent) for (at, p, accent), end in zip(kept, ends, strict=True)]


def eighths(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Root and fifth driven in eighths."""
    root = next(p for p in v if p % 12 == span.chord.root)
    power = tuple(sorted((root, root + 7 if root + 7 <= 70 else root - 5)))
    return _run(span, 1 / plan.metre.parts, [power], 0.75)


def sixteenths(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Short syncopated chops on a grid of sixteenths."""
    grids = ("x..x..x...x.x...", "x.xx..x.x.xx..x.", "..x...x.x.x...xx", "x...x.xx..x.x...")
    grid = pick(rng, grids)
    size = int((span.end - span.start) * 4)
    return [(i / 4, 0.18, v, 5 if i % 4 == 0 else -2) for i in range(min(16, size)) if grid[i] == "x"]


def offbeat(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Short stabs between the beats."""
    return [(i + 0.5, 0.3, v, 2) for i in range(int(span.end - span.start))]


def comp(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Loose syncopated chords as a jazz pianist lays them."""
    size = span.end - span.start
    if plan.metre.parts == 3:
        places = [(0.0, 0.6), (2 / 3, 0.3), (1.0, 0.6), (5 / 3, 0.3)]
    else:
        places = pick(
            rng,
            [
                [(0.0, 1.2), (1.5, 0.5)],
                [(0.0, 0.4), (2.5, 0.9)],
                [(0.0, 0.9), (1.5, 0.4), (3.0, 0.6)],
                [(0.0, 2.2), (2.5, 0.5)],
            ],
        )
    return [(at, length, v, 3 if at == 0 else 0) for at, length in places if at + 0.2 < size]


def shuffle(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Root with fifth and root with sixth in turn, rocking in swung eighths."""
    root = next(p for p in v if p % 12 == span.chord.root)
    step = 1 / plan.metre.parts
    fifth, sixth = (root, root + 7), (root, root + 9)
    order = [fifth, fifth, sixth, sixth] if plan.metre.parts == 2 else [fifth, fifth, fifth, sixth, sixth, sixth]
    return _run(span, step, order, 0.8)


def oom_pah(plan: Plan, span: Span, v: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Chords on the weak beats, leaving the strong ones to the bass."""
    size = span.end - span.start
    if plan.metre.parts == 3:
        places = [b + 2 / 3 for b in range(int(size))]
    elif plan.metre.beats == 3:
        places = [1.0, 2.0]
    else:
        places = [1.0, 3.0] if plan.bpm > 112 else [0.5, 1.5, 2.5, 3.5]
    return [(at, 0.45, v, -2) for at in places if at < size - 1e-6]


STYLES: dict[str, Callable[[Plan, Span, Voicing, np.random.Generator], list[Hit]]] = {
    "arpeggio": arpeggio,
    "sixteenth arpeggio": sixteenth_arpeggio,
    "broken": broken,
    "alberti": alberti,
    "block": block,
    "beats": beats,
    "strum": strum,
    "eighths": eighths,
    "sixteenths": sixteenths,
    "offbeat": offbeat,
    "comp": comp,
    "shuffle": shuffle,
    "oom-pah": oom_pah,
}

STROKE_SECONDS = {"strum": 0.011, "block": 0.004, "beats": 0.003}
ROLLED = ("harp", "nylon guitar", "steel guitar", "piano", "jazz guitar")


def accompany(plan: Plan, spans: tuple[Span, ...], register: tuple[int, int], rng: np.random.Generator) -> list[Note]:
    """Chord notes for a whole piece in one style, voices led smoothly, the last chord held."""
    style = STYLES[plan.accompaniment]
    part = plan.part("chords")
    rolled = 0.035 if part and part.instrument.name in ROLLED and flip(rng, 0.5) else 0.006
    spread = STROKE_SECONDS.get(plan.accompaniment, 0.002)
    notes: list[Note] = []
    voicing: Voicing | None = None
    for span in spans:
        voicing = lead_voices(voicing, span.chord, *register)
        if span is spans[-1]:
            wide = voicing if rolled < 0.01 else (*voicing, voicing[0] + 12)
            for place, p in enumerate(sorted(wide)):
                notes.append(Note(span.start, span.end - span.start + 0.5, p, 0, "chords", min(0.12, rolled * place)))
            continue
        for at, length, chosen, accent in style(plan, span, voicing, rng):
            for place, p in enumerate(chosen):
                notes.append(Note(span.start + at, length, p, accent, "chords", spread * place))
    return notes


def pad(spans: tuple[Span, ...], register: tuple[int, int]) -> list[Note]:
    """Held chords, voices led smoothly, tones common to neighbours tied over."""
    notes: list[Note] = []
    held: dict[int, float] = {}
    voicing: Voicing | None = None
    for span in spans:
        voicing = lead_voices(voicing, span.chord, *register)
        for p in [p for p in held if p not in voicing]:
            notes.append(Note(held[p], span.start - held[p], p, 0, "pad"))
            del held[p]
        for p in voicing:
            held.setdefault(p, span.start)
    return notes + [Note(start, spans[-1].end - start + 0.5, p, 0, "pad") for p, start in held.items()]
