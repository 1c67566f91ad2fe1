"""Pieces turned into sound, many in one run of FluidSynth, cut apart at known samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import soxr

from . import fluidsynth
from .chance import Stream, stream
from .compose import compose
from .midi import DRUM_CHANNEL, RESET, SOUND_OFF, VOLUME, Event, control, note_off, note_on, program, smf
from .piece import Piece
from .room import finish

GAP_MS = 700
QUIET_MS = 250
BASE_VOLUME = 88


def channels(piece: Piece) -> dict[str, int]:
    """A MIDI channel for each role; roles of one instrument share it."""
    found: dict[str, int] = {}
    taken: dict[str, int] = {}
    for part in piece.plan.parts:
        if part.role == "drums":
            found["drums"] = DRUM_CHANNEL
        else:
            found[part.role] = taken.setdefault(part.instrument.name, len(taken))
    return found


def events(piece: Piece, start: int) -> list[Event]:
    """The messages of a piece that begins at a given millisecond."""
    of_role = channels(piece)
    found: list[Event] = []
    for part in piece.plan.parts:
        channel = of_role[part.role]
        volume = round(BASE_VOLUME * 10 ** (part.instrument.trim / 40))
        found.append(program(start - 100, channel, part.instrument.program))
        found.append(control(start - 50, channel, VOLUME, min(127, volume)))
    for note in piece.notes:
        begin, end = piece.times(note)
        channel = of_role[note.role]
        found.append(note_on(start + round(begin * 1000), channel, note.pitch, note.velocity))
        found.append(note_off(start + round(end * 1000), channel, note.pitch))
    stop = start + math.ceil(piece.plan.seconds * 1000) + 50
    for channel in sorted(set(of_role.values())):
        found += [control(stop, channel, SOUND_OFF, 0), control(stop + 20, channel, RESET, 0)]
    return found


def render(pieces: Sequence[Piece]) -> list[np.ndarray]:
    """The dry sound of each piece, [t] at 48 kHz, starting exactly at its first beat."""
    starts, now, messages = [], GAP_MS + QUIET_MS, []
    for piece in pieces:
        now = math.ceil(now / 4) * 4
        starts.append(now)
        messages += events(piece, now)
        now += math.ceil(piece.plan.seconds * 1000) + GAP_MS
    sound = fluidsynth.play(smf(messages, now + QUIET_MS))
    rate = fluidsynth.RATE // 1000
    clips = []
    for piece, start in zip(pieces, starts, strict=True):
        first = start * rate
        clip = sound[first : first + round(piece.plan.seconds * fluidsynth.RATE)]
        clips.append(clip.astype(np.float64))
    return clips


def clip_audio(dry: np.ndarray, piece: Piece, *, seed: int, index: int, sample_rate: int) -> np.ndarray:
    """The finished sound of a clip, [t] float32 at the wanted rate."""
    if sample_rate != fluidsynth.RATE:
        dry = soxr.resample(dry, fluidsynth.RATE, sample_rate, quality="HQ")
    return finish(dry, piece.plan, stream(seed, index, Stream.ROOM), sample_rate).astype(np.float32)


def render_clips(seed: int, indices: Sequence[int], sample_rate: int) -> list[tuple[Piece, np.ndarray]]:
    """The pieces of some clips with their finished sound, made in one run of FluidSynth."""
    pieces = [compose(seed, i) for i in indices]
    dry = render(pieces)
    made = zip(indices, pieces, dry, strict=True)
    return [(p, clip_audio(d, p, seed=seed, index=i, sample_rate=sample_rate)) for i, p, d in made]
