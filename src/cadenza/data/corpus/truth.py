"""What is exactly true of a piece, as the record written beside its audio."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from .piece import Piece

SPARSE, BUSY = 2.2, 4.0


def onsets_per_second(piece: Piece) -> float:
    """Distinct note starts a second, drums apart, a spread chord counted once."""
    starts = {round(n.start, 3) for n in piece.notes if n.role != "drums"}
    return len(starts) / (piece.plan.beats * piece.plan.beat_seconds)


def density(piece: Piece) -> str:
    """`sparse`, `medium` or `busy`, by the number of note starts a second."""
    rate = onsets_per_second(piece)
    return "sparse" if rate < SPARSE else "busy" if rate > BUSY else "medium"


def chords(piece: Piece) -> list[list[Any]]:
    """Start, end in seconds and label of each chord, repeats joined, the last to the clip's end."""
    plan, found = piece.plan, []
    for label, group in groupby(piece.spans, key=lambda s: s.chord.label):
        spans = list(group)
        found.append([round(spans[0].start * plan.beat_seconds, 3), round(spans[-1].end * plan.beat_seconds, 3), label])
    found[-1][1] = plan.seconds
    return found


def truth(piece: Piece) -> dict[str, Any]:
    """All labels of a piece as plain data, times in seconds from the first sample."""
    plan = piece.plan
    beats = [round(b * plan.beat_seconds, 3) for b in range(plan.beats)]
    players: dict[tuple[str, str], dict[str, Any]] = {}
    for part in plan.parts:
        tool = part.instrument
        players[part.role, tool.name] = {"role": part.role, "program": tool.program, "name": tool.name, "family": tool.family}
    notes = []
    for note in piece.notes:
        start, end = piece.times(note)
        notes.append([start, end, note.pitch, note.velocity, note.role])
    return {
        "seconds": plan.seconds,
        "tempo": float(plan.bpm),
        "key": plan.key.name,
        "mode": plan.key.mode,
        "metre": plan.metre.name,
        "bars": plan.bars,
        "genre": plan.genre.name,
        "mood": plan.mood,
        "texture": plan.ensemble,
        "accompaniment": plan.accompaniment if plan.part("chords") else None,
        "dynamics": plan.dynamics,
        "density": density(piece),
        "instruments": list(players.values()),
        "families": sorted({p.instrument.family for p in plan.parts}),
        "lead_family": plan.parts[0].instrument.family,
        "chords": chords(piece),
        "melody": [note[:3] for note in sorted(notes) if note[4] == "melody"],
        "beats": beats,
        "downbeats": beats[:: plan.metre.beats],
        "notes": sorted(notes, key=lambda n: (n[0], n[2], n[4])),
    }
