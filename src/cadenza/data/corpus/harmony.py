"""Chord progressions: loops, functional walks and the cadences that close phrases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .chance import flip, pick, weighted
from .piece import Plan, Span
from .theory import chord

LOOPS: dict[str, dict[str, tuple[str, ...]]] = {
    "pop": {
        "major": ("I V vi IV", "I vi IV V", "I IV vi V", "I iii IV V", "I IV ii V", "vi IV I V", "I ii IV V"),
        "minor": ("i VI III VII", "i VII VI VII", "i iv VI V", "i VI iv V", "i III VII iv", "i VII VI V"),
    },
    "folk": {
        "major": ("I IV I V", "I I IV V", "I V I V", "I vi IV V", "I IV V IV", "I ii V I"),
        "minor": ("i VII i V", "i iv i V", "i VII VI V", "i III VII i", "i VI VII i", "i i iv V"),
    },
    "rock": {
        "major": ("I IV V IV", "I bVII IV I", "I V IV IV", "I IV vi V", "I I IV V", "I V vi IV"),
        "minor": ("i VI VII i", "i VII VI VII", "i III VII iv", "i i VI VII", "i iv VII III", "i VII VI V"),
    },
    "funk": {
        "major": ("I7 I7 IV7 I7", "I7 IV7 I7 V7", "I7 bVII I7 IV7", "IM7 ii7 IM7 V7"),
        "minor": ("i7 i7 iv7 i7", "i7 VII i7 iv7", "i7 iv7 VII i7", "i7 VI VII i7"),
    },
    "modal": {
        "major": ("IM7 IVM7", "I IV vi IV", "IM7 vi7 IVM7 V", "I iii IV I", "IM7 ii7 IVM7 IM7"),
        "minor": ("i7 VIM7", "i VII VI VII", "i iv VI i", "i7 iv7 VIM7 VII", "i III VI VII"),
    },
    "jazz": {
        "major": ("IM7 vi7 ii7 V7", "ii7 V7 IM7 vi7", "IM7 VI7 ii7 V7", "iii7 vi7 ii7 V7", "IM7 IVM7 iii7 vi7 ii7 V7"),
        "minor": ("i7 iih7 V7 i7", "iih7 V7 i7 i7", "i7 iv7 VII7 IIIM7 VIM7 iih7 V7", "i7 VIM7 iih7 V7"),
    },
    "jazzpop": {
        "major": ("IVM7 iii7 ii7 IM7", "ii7 V7 IM7 vi7", "IM7 vi7 ii7 V7", "IVM7 V7 iii7 vi7"),
        "minor": ("i7 iv7 VIM7 V7", "VIM7 v7 iv7 i7", "i7 VIM7 IIIM7 VII", "iv7 VII7 IIIM7 VIM7"),
    },
}

WALKS: dict[str, dict[str, dict[str, Mapping[str, float]]]] = {
    "classical": {
        "major": {
            "I": {"IV": 3, "V": 3, "vi": 2.5, "ii": 2, "V7": 1, "iii": 0.5},
            "ii": {"V": 3, "V7": 2},
            "iii": {"vi": 2, "IV": 2},
            "IV": {"V": 3, "I": 2, "ii": 1, "V7": 1},
            "V": {"I": 4, "vi": 2},
            "V7": {"I": 4, "vi": 1},
            "vi": {"ii": 2, "IV": 2.5, "V/V": 0.7, "V": 0.5},
            "V/V": {"V": 1, "V7": 1},
        },
        "minor": {
            "i": {"iv": 3, "V": 3, "VI": 2, "iio": 1, "V7": 1, "VII": 1},
            "iio": {"V": 2, "V7": 2},
            "III": {"VI": 2, "iv": 2},
            "iv": {"V": 3, "i": 1.5, "V7": 1.5, "VII": 0.7},
            "V": {"i": 4, "VI": 1.5},
            "V7": {"i": 4, "VI": 1},
            "VI": {"iv": 2, "iio": 1, "VII": 1, "V": 1},
            "VII": {"III": 3, "VI": 0.5},
        },
    },
    "hymn": {
        "major": {
            "I": {"IV": 3, "V": 3, "vi": 2, "ii": 1, "I": 0.7},
            "ii": {"V": 4},
            "IV": {"I": 3, "V": 2},
            "V": {"I": 4, "vi": 2},
            "vi": {"IV": 2, "ii": 2, "V": 1},
        },
        "minor": {
            "i": {"iv": 3, "V": 3, "VI": 2, "VII": 1},
            "iv": {"i": 2, "V": 3},
            "V": {"i": 4, "VI": 1.5},
            "VI": {"iv": 2, "III": 1, "V": 1},
            "III": {"iv": 1, "VI": 1},
            "VII": {"III": 1, "i": 1},
        },
    },
}

CADENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "classical": {"major": ("ii V7", "IV V7", "IV V", "ii V"), "minor": ("iv V7", "iio V7", "iv V", "VI V7")},
    "hymn": {"major": ("IV V", "ii V7", "V IV", "ii V"), "minor": ("iv V", "iv V7", "V iv", "VI V")},
    "pop": {"major": ("IV V", "ii V", "V IV"), "minor": ("iv V", "VI V", "VI VII")},
    "folk": {"major": ("IV V", "ii V", "V V7"), "minor": ("iv V", "VII V", "VI VII")},
    "rock": {"major": ("IV V", "V IV", "bVII IV"), "minor": ("VI VII", "iv V", "VI V")},
    "funk": {"major": ("IV7 V7", "ii7 V7", "V7 IV7"), "minor": ("iv7 V7", "VI VII", "VI V7")},
    "modal": {"major": ("IVM7 V", "ii7 IV", "vi V"), "minor": ("VIM7 VII", "iv7 V", "VI V")},
    "jazz": {"major": ("ii7 V7",), "minor": ("iih7 V7",)},
    "jazzpop": {"major": ("ii7 V7", "IVM7 V7"), "minor": ("iv7 V7", "iih7 V7", "VIM7 V7")},
    "blues": {"major": ("V7 IV7", "IV7 V7"), "minor": ("iv7 V7", "VI7 V7")},
}

TWELVE_BARS = {
    "major": "I7 IV7 I7 I7 IV7 IV7 I7 I7 V7 IV7 I7 V7",
    "minor": "i7 iv7 i7 i7 iv7 iv7 i7 i7 VI7 V7 i7 V7",
}

FINALS = {
    "jazz": {"major": "IM7", "minor": "i7"},
    "jazzpop": {"major": "IM7", "minor": "i7"},
    "blues": {"major": "I7", "minor": "i7"},
}


def slots(plan: Plan, rng: np.random.Generator) -> list[tuple[float, float]]:
    """The stretches of beats, before the final chord, that get one chord each."""
    beats = plan.metre.beats
    halves = plan.metre.name != "3/4" and (
        plan.bar_seconds > 3.0
        or (plan.bar_seconds > 1.9 and plan.genre.harmony in ("jazz", "hymn", "classical") and flip(rng, 0.4))
    )
    step = beats / 2 if halves else beats
    marks = [0.0]
    while marks[-1] < plan.final_beat:
        marks.append(min(marks[-1] + step, plan.final_beat))
    return list(zip(marks, marks[1:], strict=False))


def _body(plan: Plan, count: int, rng: np.random.Generator) -> list[str]:
    harmony, family = plan.genre.harmony, plan.key.family
    if harmony == "blues":
        form = TWELVE_BARS[family].split()
        return form[:count] if count >= 10 else (form[:4] + form[4:6] + form[8:10] + form)[:count]
    if harmony in LOOPS:
        loop = pick(rng, LOOPS[harmony][family]).split()
        return [loop[i % len(loop)] for i in range(count)]
    walk = WALKS[harmony][family]
    found = ["I" if family == "major" else "i"]
    half = count // 2
    while len(found) < count:
        options = dict(walk[found[-1]])
        if count >= 7 and len(found) == half - 1:
            options = {n: w for n, w in options.items() if n.startswith("V") and "/" not in n and "I" not in n} or options
        found.append(weighted(rng, options))
    return found


def progression(plan: Plan, rng: np.random.Generator) -> tuple[Span, ...]:
    """Chords for every beat of a plan, from the tonic through a cadence to the tonic."""
    harmony, family = plan.genre.harmony, plan.key.family
    tonic = "I" if family == "major" else "i"
    places = slots(plan, rng)
    count = len(places)
    names = _body(plan, count, rng)
    final = FINALS.get(harmony, {}).get(family, tonic)
    if names[0].upper().rstrip("M7") != "I":
        names[0] = final
    cadence = pick(rng, CADENCES[harmony][family]).split()
    keep = 2 if count >= 4 else 1
    names[count - keep :] = cadence[-keep:]
    spans = [Span(a, b, chord(plan.key, n)) for (a, b), n in zip(places, names, strict=True)]
    spans.append(Span(float(plan.final_beat), float(plan.beats), chord(plan.key, final)))
    return tuple(spans)
