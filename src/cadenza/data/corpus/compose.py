"""A clip's piece: first the plan, then chords, melody, accompaniment, bass, drums and the touch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .accompaniment import accompany, pad
from .bass import bass_line
from .chance import Stream, between, flip, stream, weighted, wobble
from .drums import GROOVES, drum_part
from .genres import GENRES, Genre
from .harmony import progression
from .instruments import Instrument, instrument
from .melody import melody, thirds
from .piece import METRES, Metre, Note, Part, Piece, Plan, Span
from .theory import Key

_BY_NAME = {g.name: g for g in GENRES}

BARS = {2: 0.1, 3: 1, 4: 6, 5: 0.5, 6: 3, 7: 0.4, 8: 6, 9: 0.5, 10: 1.5, 12: 2}
SHORTEST, LONGEST = 9.8, 16.0

# Registers (low, high) of bass, chords and melody where one instrument plays them all.
SOLO = {
    "piano": ((33, 50), (48, 66), (65, 84)),
    "bright piano": ((33, 50), (48, 66), (65, 84)),
    "electric piano": ((36, 50), (50, 66), (65, 82)),
    "nylon guitar": ((40, 53), (50, 66), (64, 79)),
    "steel guitar": ((40, 53), (50, 66), (64, 79)),
    "jazz guitar": ((40, 53), (50, 65), (63, 77)),
    "clean electric guitar": ((40, 53), (50, 66), (64, 79)),
    "overdriven guitar": ((40, 53), (50, 66), (64, 79)),
    "harp": ((36, 52), (50, 66), (66, 84)),
    "music box": (None, (60, 75), (74, 91)),
    "celesta": (None, (60, 75), (74, 91)),
    "vibraphone": (None, (54, 69), (68, 84)),
    "accordion": ((41, 53), (53, 68), (67, 82)),
    "church organ": ((36, 50), (50, 66), (65, 81)),
    "hammond organ": ((36, 50), (50, 66), (65, 81)),
    "string ensemble": ((36, 50), (50, 66), (65, 81)),
    "poly synth": ((36, 50), (50, 66), (65, 81)),
}
CHORDS = {"celesta": (60, 77), "vibraphone": (54, 71), "trombone": (46, 64), "french horn": (48, 66), "music box": (60, 77)}
BASSES = {"cello": (36, 53), "bassoon": (35, 53), "double bass": (28, 46), "synth bass": (30, 46)}
TWO_HANDED = ("piano", "organ", "guitar")

MOODS: dict[tuple[str, str], dict[str, float]] = {
    ("major", "slow"): {"calm": 3, "tender": 3, "hopeful": 1.5, "warm": 2},
    ("major", "mid"): {"happy": 3, "warm": 2, "hopeful": 2, "playful": 1.5},
    ("major", "fast"): {"happy": 3, "playful": 2, "energetic": 2.5},
    ("minor", "slow"): {"sad": 3, "melancholic": 3, "mysterious": 1, "nostalgic": 1},
    ("minor", "mid"): {"melancholic": 2.5, "mysterious": 2, "nostalgic": 2, "tense": 1},
    ("minor", "fast"): {"tense": 2.5, "dramatic": 2.5, "energetic": 2, "mysterious": 0.7},
}
GENRE_MOODS = {
    "march": {"majestic": 4}, "hymn": {"solemn": 4}, "lullaby": {"calm": 2, "tender": 3}, "ambient": {"dreamy": 6},
    "funk": {"groovy": 6}, "lo-fi": {"relaxed": 6}, "rock": {"energetic": 3}, "jazz": {"relaxed": 1.5, "groovy": 1},
    "electronic": {"energetic": 3, "groovy": 1}, "ballad": {"tender": 1.5}, "blues": {"groovy": 1, "relaxed": 1},
}  # fmt: skip
SOFT = ("calm", "tender", "sad", "dreamy", "relaxed", "nostalgic", "warm")
LOUD = ("energetic", "majestic", "dramatic", "tense", "groovy")
TOUCH = {"soft": 58, "medium": 76, "loud": 96, "building": 76, "fading": 76}
BALANCE = {"melody": 11, "chords": -9, "bass": 0, "pad": -18, "drums": 0}


def _bars(metre: Metre, bpm: int, rng: np.random.Generator) -> int:
    bar = metre.beats * 60 / bpm
    fitting = {n: w for n, w in BARS.items() if SHORTEST <= n * bar + 0.8 <= LONGEST}
    if fitting:
        return weighted(rng, fitting)
    return max(2, math.floor((LONGEST - 0.8) / bar))


def _parts(genre: Genre, ensemble: str, metre: str, rng: np.random.Generator) -> tuple[Part, ...]:
    if ensemble == "solo":
        only = instrument(weighted(rng, genre.solos))
        low = [Part("bass", only)] if SOLO[only.name][0] else []
        return (Part("melody", only), Part("chords", only), *low)
    lead = instrument(weighted(rng, genre.leads))
    parts = [Part("melody", lead)]
    if ensemble == "alone":
        return tuple(parts)
    options = {n: w for n, w in genre.chords.items() if n != lead.name} or {"piano": 1.0}
    harmony = instrument(weighted(rng, options))
    parts.append(Part("chords", harmony))
    drums = [Part("drums", instrument(genre.kit))] if (genre.drums, metre) in GROOVES else []
    if ensemble == "duo":
        return (*parts, Part("bass", harmony)) if harmony.family in TWO_HANDED or harmony.name == "harp" else tuple(parts)
    bass = {n: w for n, w in genre.basses.items() if n != lead.name} or {"double bass": 1.0}
    third = Part("bass", instrument(weighted(rng, bass)))
    if ensemble == "trio" and genre.pads and flip(rng, 0.4):
        third = Part("pad", _pad(genre, parts, rng))
    elif ensemble == "trio" and drums and harmony.family in TWO_HANDED and flip(rng, 0.35):
        return (*parts, Part("bass", harmony), *drums)
    parts.append(third)
    if ensemble == "band":
        parts += drums
        if genre.pads and flip(rng, 0.5):
            parts.append(Part("pad", _pad(genre, parts, rng)))
    return tuple(parts)


def _pad(genre: Genre, parts: list[Part], rng: np.random.Generator) -> Instrument:
    taken = {p.instrument.name for p in parts}
    return instrument(weighted(rng, {n: w for n, w in genre.pads.items() if n not in taken} or {"string ensemble": 1.0}))


def pace(bpm: int) -> str:
    """The coarse tempo class of a mood: slow, mid or fast."""
    return "slow" if bpm < 86 else "mid" if bpm < 116 else "fast"


def plan_piece(seed: int, index: int) -> tuple[Plan, np.random.Generator]:
    """The plan of a clip, with the generator from which its notes are to be drawn."""
    rng = stream(seed, index, Stream.COMPOSE)
    tonic, family = int(rng.random() * 12), "major" if rng.random() < 0.5 else "minor"
    genre = _BY_NAME[weighted(rng, {name: g.weight for name, g in _BY_NAME.items()})]
    mode = {"major": "ionian", "minor": "aeolian"}[family]
    if genre.harmony in ("funk", "modal", "folk") and flip(rng, 0.12):
        mode = {"major": "mixolydian", "minor": "dorian"}[family]
    metre = METRES[weighted(rng, genre.metres)]
    low, high = genre.tempo
    if metre.name == "6/8":
        low, high = max(50, round(low * 0.75)), min(112, round(high * 0.75))
    bpm = round(between(rng, low - 0.49, high + 0.49))
    ensemble = weighted(rng, {name: w * (1.7 if name == "solo" else 1.0) for name, w in genre.ensembles.items()})
    parts = _parts(genre, ensemble, metre.name, rng)
    accompaniment = weighted(rng, genre.accompaniments)
    if accompaniment in ("comp", "block", "sixteenths", "offbeat") and not any(p.role == "drums" for p in parts):
        accompaniment = weighted(rng, {accompaniment: 1.0, "beats": 1.0, "broken": 1.0})
    moods = {**MOODS[family, pace(bpm)], **GENRE_MOODS.get(genre.name, {})}
    mood = weighted(rng, moods)
    dynamics = {"soft": 1.0, "medium": 2.0, "loud": 1.0, "building": 0.5, "fading": 0.35}
    if mood in SOFT:
        dynamics = {**dynamics, "soft": 2.5, "loud": 0.2}
    if mood in LOUD:
        dynamics = {**dynamics, "soft": 0.2, "loud": 2.5}
    plan = Plan(
        genre=genre,
        key=Key(tonic, mode),
        bpm=bpm,
        metre=metre,
        bars=_bars(metre, bpm, rng),
        ensemble=ensemble,
        parts=parts,
        accompaniment=accompaniment,
        bass_style=weighted(rng, genre.bass_styles),
        mood=mood,
        dynamics=weighted(rng, dynamics),
        density=weighted(rng, genre.density),
    )
    return plan, rng


def _notes(plan: Plan, spans: tuple[Span, ...], rng: np.random.Generator) -> list[Note]:
    lead = plan.parts[0].instrument
    chords, bass = plan.part("chords"), plan.part("bass")
    register = (lead.low, lead.high)
    chord_register, bass_register = (50, 68), (28, 48)
    if chords:
        chord_register = CHORDS.get(chords.instrument.name, chord_register)
    if bass:
        bass_register = BASSES.get(bass.instrument.name, bass_register)
        if bass.instrument.name in SOLO:
            bass_register = SOLO[bass.instrument.name][0] or bass_register
            chord_register = SOLO[bass.instrument.name][1]
    if plan.ensemble == "solo":
        _, chord_register, register = SOLO[lead.name]
    tune = melody(plan, spans, register, rng)
    notes = list(tune)
    if plan.ensemble == "solo" and lead.family in ("piano", "organ", "strings") and flip(rng, 0.35):
        notes += thirds(plan, spans, tune, chord_register[1] - 2)
    if chords:
        notes += accompany(plan, spans, chord_register, rng)
    if bass:
        notes += bass_line(plan, spans, bass_register, rng)
    if plan.part("pad"):
        notes += pad(spans, (52, 70))
    if plan.part("drums"):
        notes += drum_part(plan, rng)
    return notes


def _touch(plan: Plan, notes: list[Note], rng: np.random.Generator) -> list[Note]:
    """The notes with velocities shaped by dynamics, metre and phrase, and slightly uneven times."""
    phrase = plan.metre.beats * (4 if plan.bars >= 7 else 2)
    tight = plan.genre.name in ("electronic", "march", "rock")
    loose = 0.003 if tight else 0.007
    touched = []
    for note in sorted(notes, key=lambda n: (n.start, n.role, n.pitch)):
        along = note.start / plan.beats
        base = TOUCH[plan.dynamics] + {"building": 44 * along - 24, "fading": 18 - 40 * along}.get(plan.dynamics, 0)
        swell = 5 * math.sin(math.pi * ((note.start % phrase) / phrase))
        inside = note.start % plan.metre.beats
        accent = 6 if inside < 1e-6 else 2 if abs(inside - round(inside)) < 1e-6 else -3
        velocity = base + swell + accent + BALANCE[note.role] + note.velocity * 0.8 + wobble(rng, 3.0)
        late = 0.0 if note.start == 0 else max(-2 * loose, min(2 * loose, wobble(rng, loose)))
        touched.append(replace(note, velocity=int(max(18, min(122, round(velocity)))), delay=note.delay + late))
    return touched


def _separate(piece: Piece) -> Piece:
    """The piece without notes that strike a pitch again while the same part still holds it."""
    kept: list[Note] = []
    sounding: dict[tuple[str, int], int] = {}
    names = {p.role: p.instrument.name for p in piece.plan.parts}
    for note in piece.notes:
        place = (names[note.role], note.pitch)
        before = sounding.get(place)
        if before is not None:
            other = kept[before]
            gap = note.start - other.start
            tune, other_tune = note.role == "melody", other.role == "melody"
            if gap < 0.05:
                if tune and not other_tune:
                    kept[before] = note
                continue
            if other.start + other.length > note.start - 0.02:
                if other_tune and not tune:
                    continue
                kept[before] = replace(other, length=gap - 0.02)
        sounding[place] = len(kept)
        kept.append(note)
    return replace(piece, notes=tuple(kept))


def compose(seed: int, index: int) -> Piece:
    """The piece of clip `index` in the corpus of a seed."""
    plan, rng = plan_piece(seed, index)
    spans = progression(plan, rng)
    notes = _touch(plan, _notes(plan, spans, rng), rng)
    return _separate(Piece(plan, spans, tuple(notes)))
