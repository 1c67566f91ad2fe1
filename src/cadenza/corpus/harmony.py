"""Chord progressions: Roman numerals, loops, transitions and the cadences that end a piece."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

from .piece import ChordSegment, PiecePlan, bernoulli, choice, weighted_choice
from .tables import load_tables
from .theory import SCALES, ChordSymbol, Key

_DEGREES = {"i": 0, "ii": 1, "iii": 2, "iv": 3, "v": 4, "vi": 5, "vii": 6}
_MAJOR_SUFFIXES = {"": "maj", "7": "7", "M7": "maj7", "o": "dim", "h7": "hdim7", "sus": "sus4", "6": "maj6"}
_MINOR_SUFFIXES = {**_MAJOR_SUFFIXES, "": "min", "6": "min", "7": "min7"}


def compose_progression(plan: PiecePlan, rng: np.random.Generator) -> tuple[ChordSegment, ...]:
    """Compose the chords of all beats, from the tonic through a cadence to the tonic."""
    tonality, style = plan.key.tonality, load_tables().harmony[plan.genre.harmony]
    ranges = _chord_ranges(plan, rng)
    numerals = _choose_numerals(plan, len(ranges), rng)
    if numerals[0].upper().rstrip("M7") != "I":
        numerals[0] = style.final[tonality]
    cadence = choice(rng, style.cadences[tonality]).split()[-2 if len(ranges) >= 4 else -1 :]
    numerals[-len(cadence) :] = cadence
    segments = [ChordSegment(*beats, parse_numeral(plan.key, n)) for beats, n in zip(ranges, numerals, strict=True)]
    final = parse_numeral(plan.key, style.final[tonality])
    return (*segments, ChordSegment(float(plan.final_beat), float(plan.beats), final))


def _chord_ranges(plan: PiecePlan, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return the ranges of beats before the final chord that get one chord each."""
    halves = plan.time_signature.name != "3/4" and (
        plan.bar_seconds > 3.0
        or (plan.bar_seconds > 1.9 and plan.genre.harmony in ("jazz", "hymn", "classical") and bernoulli(rng, 0.4))
    )
    step = plan.beats_per_bar / 2 if halves else plan.beats_per_bar
    starts = [0.0]
    while starts[-1] < plan.final_beat:
        starts.append(min(starts[-1] + step, plan.final_beat))
    return list(itertools.pairwise(starts))


def _choose_numerals(plan: PiecePlan, count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` Roman numerals from the form, a loop or the transitions of the style."""
    tonality, style = plan.key.tonality, load_tables().harmony[plan.genre.harmony]
    if style.form:
        form = style.form[tonality].split()
        return form[:count] if count >= 10 else (form[:4] + form[4:6] + form[8:10] + form)[:count]
    if style.loops:
        loop = choice(rng, style.loops[tonality]).split()
        return [loop[i % len(loop)] for i in range(count)]
    numerals = ["I" if tonality == "major" else "i"]
    while len(numerals) < count:
        options = style.transitions[tonality][numerals[-1]]
        if count >= 7 and len(numerals) == count // 2 - 1:  # a half cadence in the middle
            options = {n: w for n, w in options.items() if n in ("V", "V7")} or options
        numerals.append(weighted_choice(rng, options))
    return numerals


@cache
def parse_numeral(key: Key, numeral: str) -> ChordSymbol:
    """Return the chord of a Roman numeral such as `V7`, `bVII`, `ii` or `V/V` in a key.

    A capital numeral is major, a small one minor. Degrees are those of the key's own third, sixth and
    seventh: `VI` in A minor is F major.
    """
    if "/" in numeral:
        upper, target = numeral.split("/")
        return parse_numeral(Key(parse_numeral(key, target).root, "ionian"), upper)
    body = numeral.lstrip("b#")
    shift = numeral.count("#") - (len(numeral) - len(numeral.lstrip("b")))
    letters = "".join(c for c in body if c in "ivIV")
    suffix = body[len(letters) :]
    degree = _DEGREES[letters.lower()]
    steps = SCALES[key.mode] if shift == 0 else SCALES["ionian"]
    root = (key.tonic + steps[degree] + shift) % 12
    if suffix == "o" and degree == 6:
        root = (key.tonic + 11) % 12
    return ChordSymbol(root, (_MINOR_SUFFIXES if letters.islower() else _MAJOR_SUFFIXES)[suffix])
