"""Drum parts: a groove for each genre, with fills where phrases end."""

from __future__ import annotations

import numpy as np

from .chance import flip, pick
from .piece import Note, Plan

KICK, STICK, SNARE, CLAP, HAT, PEDAL, OPEN, LOW_TOM, MID_TOM, HIGH_TOM, CRASH, RIDE, TAMBOURINE, SHAKER = (
    36, 37, 38, 39, 42, 44, 46, 45, 47, 50, 49, 51, 54, 70,
)  # fmt: skip

VELOCITY = {"X": 12, "x": 0, "o": -22}
Groove = dict[int, str]

# One character a step: four steps a beat in 4/4 and 3/4, three in 6/8.
GROOVES: dict[tuple[str, str], tuple[Groove, ...]] = {
    ("rock", "4/4"): (
        {HAT: "X.x.X.x.X.x.X.x.", SNARE: "....X.......X...", KICK: "X.......X.x....."},
        {HAT: "X.x.X.x.X.x.X.x.", SNARE: "....X.......X...", KICK: "X.....x.X......."},
        {RIDE: "X.x.X.x.X.x.X.x.", SNARE: "....X.......X...", KICK: "X..x....X.x....."},
    ),
    ("funk", "4/4"): (
        {HAT: "XoxoXoxoXoxoXoxo", SNARE: "....X..o.o..X..o", KICK: "X..x..x...x..x.."},
        {HAT: "XoxoXoxoXoxoXo..", OPEN: "..............x.", SNARE: "....X..o.o..X...", KICK: "X.x.......xx...."},
        {HAT: "x.x.x.x.x.x.x.x.", SNARE: "....X..o....X.o.", KICK: "X..x......x..x.."},
    ),
    ("jazz", "4/4"): (
        {RIDE: "x...X.x.x...X.x.", PEDAL: "....x.......x...", KICK: "o.......o......."},
        {RIDE: "x...X.x.x...X.x.", PEDAL: "....x.......x...", SNARE: "......o.......o."},
    ),
    ("jazz", "3/4"): ({RIDE: "x...X.x.x...", PEDAL: "....x...x...", KICK: "o..........."},),
    ("shuffle", "4/4"): (
        {HAT: "X.x.X.x.X.x.X.x.", SNARE: "....X.......X...", KICK: "X.......X.x....."},
        {RIDE: "X.x.X.x.X.x.X.x.", SNARE: "....X.......X...", KICK: "X.....x.X......."},
    ),
    ("shuffle", "6/8"): ({HAT: "XxxXxx", SNARE: "...X..", KICK: "X....x"},),
    ("ballad", "4/4"): (
        {HAT: "x.o.x.o.x.o.x.o.", STICK: "....x.......x...", KICK: "x.......x......."},
        {HAT: "x...x...x...x...", SNARE: "....x.......x...", KICK: "x.....o.x......."},
    ),
    ("ballad", "6/8"): ({HAT: "xooxoo", STICK: "...x..", KICK: "x....."},),
    ("waltz", "3/4"): (
        {KICK: "x...........", SNARE: "....o...o...", HAT: "....o...o..."},
        {KICK: "x...........", PEDAL: "....x...x..."},
    ),
    ("folk", "4/4"): (
        {KICK: "x.......x.......", TAMBOURINE: "....x.......x...", SHAKER: "x.o.x.o.x.o.x.o."},
        {KICK: "x...x...x...x...", SHAKER: "o.x.o.x.o.x.o.x."},
    ),
    ("folk", "3/4"): ({KICK: "x...........", TAMBOURINE: "....x...x..."},),
    ("folk", "6/8"): ({KICK: "x..x..", SHAKER: "xooxoo", TAMBOURINE: "...x.."},),
    ("march", "4/4"): (
        {KICK: "X.......X.......", SNARE: "x..ox.x.x..ox.xo"},
        {KICK: "X...x...X...x...", SNARE: "..x...x...x..xxx"},
    ),
    ("march", "6/8"): ({KICK: "X..x..", SNARE: "x.xx.x"},),
    ("electronic", "4/4"): (
        {KICK: "X...X...X...X...", CLAP: "....x.......x...", HAT: "..x...x...x...x."},
        {KICK: "X...X...X...X...", SNARE: "....x.......x...", HAT: "o.x.o.x.o.x.o.x.", OPEN: "..............o."},
        {KICK: "X.....x.X.......", SNARE: "....X.......X...", HAT: "x.x.x.x.x.x.x.xx"},
    ),
    ("lofi", "4/4"): (
        {KICK: "X......xx.......", SNARE: "....x.......x...", HAT: "x.o.x.o.x.o.x.o."},
        {KICK: "X.....x...x.....", SNARE: "....x.......x..o", HAT: "x.x.x.x.x.xox.x."},
        {KICK: "X..x......x.....", STICK: "....x.......x...", HAT: "x.o.x.o.x.o.x.o."},
    ),
}  # fmt: skip

FILLS: dict[str, tuple[Groove, ...]] = {
    "4/4": (
        {SNARE: "....x...x.x.....", HIGH_TOM: "..........x.x...", LOW_TOM: "..............xx", KICK: "X.......x......."},
        {SNARE: "....X.....x.x.xx", KICK: "X.......X......."},
        {HAT: "X.x.X.x.", SNARE: "....X...xx......", HIGH_TOM: "..........xx....", MID_TOM: "............xx..",
            LOW_TOM: "..............xx"},
    ),
    "3/4": ({KICK: "x...........", SNARE: "....x...x.x."}, {KICK: "x...........", HIGH_TOM: "....x.......",
        LOW_TOM: "........x.x."}),
    "6/8": ({KICK: "X.....", SNARE: "..xxxx"}, {KICK: "X..x..", HIGH_TOM: "...xx.", LOW_TOM: ".....x"}),
}  # fmt: skip


def _strokes(groove: Groove, start: float, steps: int, limit: float) -> list[Note]:
    found = []
    for drum, line in groove.items():
        for i, mark in enumerate(line):
            beat = start + i / steps
            if mark in VELOCITY and beat < limit - 1e-6:
                found.append(Note(beat, 0.2, drum, VELOCITY[mark], "drums"))
    return found


def drum_part(plan: Plan, rng: np.random.Generator) -> list[Note]:
    """A groove through every bar, a fill before each new phrase, a stroke on the last chord."""
    style, metre = plan.genre.drums, plan.metre
    if style is None or (style, metre.name) not in GROOVES:
        return []
    steps = 3 if metre.parts == 3 else 4
    groove, fill = pick(rng, GROOVES[style, metre.name]), pick(rng, FILLS[metre.name])
    crashes = style in ("rock", "electronic", "shuffle", "march", "funk")
    filled = style not in ("waltz", "folk")
    final = float(plan.final_beat)
    last = (plan.final_beat - 1) // metre.beats
    phrase = 4 if plan.bars >= 6 else plan.bars
    notes: list[Note] = []
    for bar in range(last + 1):
        start = float(bar * metre.beats)
        ends = bar == last or (bar + 1) % phrase == 0
        whole = start + metre.beats <= final + 1e-6
        notes += _strokes(fill if filled and ends and whole else groove, start, steps, final)
        if crashes and bar % phrase == 0 and (bar or flip(rng, 0.6)):
            notes.append(Note(start, 0.5, CRASH, -8, "drums"))
    notes.append(Note(final, 0.5, KICK, 6, "drums"))
    notes.append(Note(final, 1.0, CRASH if crashes else RIDE, -8, "drums"))
    return notes
