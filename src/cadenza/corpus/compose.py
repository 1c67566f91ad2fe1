"""Compose the piece of a clip: first its plan, then chords, melody, other parts and expression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .arrangement import compose_bass, compose_chords, compose_drums, compose_pad
from .harmony import compose_progression
from .melody import compose_melody, compose_second_voice
from .piece import (
    TAIL_SECONDS,
    TIME_SIGNATURES,
    ChordSegment,
    InstrumentPart,
    Note,
    Piece,
    PiecePlan,
    RandomStream,
    TimeSignature,
    bernoulli,
    random_stream,
    truncated_normal,
    uniform,
    weighted_choice,
)
from .tables import Genre, Weights, load_tables
from .theory import Key

BAR_WEIGHTS = {2: 0.1, 3: 1, 4: 6, 5: 0.5, 6: 3, 7: 0.4, 8: 6, 9: 0.5, 10: 1.5, 12: 2}  # by number of bars
MIN_SECONDS, MAX_SECONDS = 9.8, 16.0
CHORD_REGISTER, BASS_REGISTER, PAD_REGISTER = (50, 68), (28, 48), (52, 70)
TWO_HANDED = ("piano", "organ", "guitar")
SOFT_MOODS = ("calm", "tender", "sad", "dreamy", "relaxed", "nostalgic", "warm")
LOUD_MOODS = ("energetic", "majestic", "dramatic", "tense", "groovy")
DYNAMICS = {"soft": 1.0, "medium": 2.0, "loud": 1.0, "building": 0.5, "fading": 0.35}
BASE_VELOCITY = {"soft": 58, "medium": 76, "loud": 96, "building": 76, "fading": 76}
ROLE_VELOCITY = {"melody": 11, "chords": -9, "bass": 0, "pad": -18, "drums": 0}


def compose_piece(seed: int, index: int) -> Piece:
    """Compose the piece of clip `index` in the corpus of a seed."""
    plan, rng = plan_piece(seed, index)
    segments = compose_progression(plan, rng)
    notes = _add_expression(plan, _compose_notes(plan, segments, rng), rng)
    return Piece(plan, segments, tuple(_remove_overlaps(plan, notes)))


def plan_piece(seed: int, index: int) -> tuple[PiecePlan, np.random.Generator]:
    """Return the plan of a clip and the random generator for its notes."""
    rng = random_stream(seed, index, RandomStream.COMPOSE)
    tables = load_tables()
    tonic, tonality = int(rng.random() * 12), "major" if rng.random() < 0.5 else "minor"
    genre = tables.genres[weighted_choice(rng, {name: g.weight for name, g in tables.genres.items()})]
    mode = {"major": "ionian", "minor": "aeolian"}[tonality]
    if genre.harmony in ("funk", "modal", "folk") and bernoulli(rng, 0.12):
        mode = {"major": "mixolydian", "minor": "dorian"}[tonality]
    time_signature = TIME_SIGNATURES[weighted_choice(rng, genre.time_signatures)]
    low, high = genre.tempo
    if time_signature.name == "6/8":
        low, high = max(50, round(low * 0.75)), min(112, round(high * 0.75))
    bpm = round(uniform(rng, low - 0.49, high + 0.49))
    ensemble = weighted_choice(rng, {name: w * (1.7 if name == "solo" else 1.0) for name, w in genre.ensembles.items()})
    parts = _choose_parts(genre, ensemble, time_signature.name, rng)
    accompaniment = weighted_choice(rng, genre.accompaniments)
    if accompaniment in ("comp", "block", "sixteenths", "offbeat") and not any(p.role == "drums" for p in parts):
        accompaniment = weighted_choice(rng, {accompaniment: 1.0, "beats": 1.0, "broken": 1.0})
    mood = weighted_choice(rng, {**tables.moods[tonality][tempo_class(bpm)], **genre.moods})
    dynamics = DYNAMICS
    if mood in SOFT_MOODS:
        dynamics = {**DYNAMICS, "soft": 2.5, "loud": 0.2}
    if mood in LOUD_MOODS:
        dynamics = {**DYNAMICS, "soft": 0.2, "loud": 2.5}
    plan = PiecePlan(
        genre=genre,
        key=Key(tonic, mode),
        bpm=bpm,
        time_signature=time_signature,
        bars=_choose_bars(time_signature, bpm, rng),
        ensemble=ensemble,
        parts=parts,
        accompaniment=accompaniment,
        bass_style=weighted_choice(rng, genre.bass_styles),
        mood=mood,
        dynamics=weighted_choice(rng, dynamics),
        density=weighted_choice(rng, genre.density),
    )
    return plan, rng


def tempo_class(bpm: int) -> str:
    """Return the tempo class by which moods are chosen: slow, mid or fast."""
    return "slow" if bpm < 86 else "mid" if bpm < 116 else "fast"


def _choose_bars(time_signature: TimeSignature, bpm: int, rng: np.random.Generator) -> int:
    bar = time_signature.beats * 60 / bpm
    weights = {n: w for n, w in BAR_WEIGHTS.items() if MIN_SECONDS <= n * bar + TAIL_SECONDS <= MAX_SECONDS}
    return weighted_choice(rng, weights) if weights else max(2, math.floor((MAX_SECONDS - TAIL_SECONDS) / bar))


def _choose_parts(genre: Genre, ensemble: str, time_signature: str, rng: np.random.Generator) -> tuple[InstrumentPart, ...]:
    tables = load_tables()

    def choose_part(role: str, weights: Weights, used: Sequence[InstrumentPart] = (), default: str = "") -> InstrumentPart:
        unused = {name: w for name, w in weights.items() if name not in {p.instrument.name for p in used}}
        return InstrumentPart(role, tables.instruments[weighted_choice(rng, unused or {default: 1.0})])

    if ensemble == "solo":
        melody = choose_part("melody", genre.solos)
        roles = ("chords", "bass") if "bass" in tables.registers["solo"][melody.instrument.name] else ("chords",)
        return (melody, *(InstrumentPart(role, melody.instrument) for role in roles))
    melody = choose_part("melody", genre.leads)
    if ensemble == "alone":
        return (melody,)
    chords = choose_part("chords", genre.chords, [melody], "piano")
    has_drums = genre.drums is not None and time_signature in tables.grooves[genre.drums]
    drums = [InstrumentPart("drums", tables.instruments[genre.kit])] if has_drums else []
    left_hand = InstrumentPart("bass", chords.instrument)
    two_handed = chords.instrument.family in TWO_HANDED
    if ensemble == "duo":
        return (melody, chords, left_hand) if two_handed or chords.instrument.name == "harp" else (melody, chords)
    third = choose_part("bass", genre.basses, [melody], "double bass")
    if ensemble == "trio" and genre.pads and bernoulli(rng, 0.4):
        third = choose_part("pad", genre.pads, [melody, chords], "string ensemble")
    elif ensemble == "trio" and drums and two_handed and bernoulli(rng, 0.35):
        return (melody, chords, left_hand, *drums)
    parts = [melody, chords, third]
    if ensemble == "band":
        parts += drums
        if genre.pads and bernoulli(rng, 0.5):
            parts.append(choose_part("pad", genre.pads, parts, "string ensemble"))
    return tuple(parts)


def _compose_notes(plan: PiecePlan, segments: tuple[ChordSegment, ...], rng: np.random.Generator) -> list[Note]:
    registers = load_tables().registers
    lead = plan.parts[0].instrument
    chords, bass = plan.find_part("chords"), plan.find_part("bass")
    register, chord_register, bass_register = lead.register, CHORD_REGISTER, BASS_REGISTER
    if chords:
        chord_register = registers["chords"].get(chords.instrument.name, chord_register)
    if bass:
        bass_register = registers["bass"].get(bass.instrument.name, bass_register)
        if solo := registers["solo"].get(bass.instrument.name):
            chord_register, bass_register = solo["chords"], solo.get("bass", bass_register)
    if plan.ensemble == "solo":
        register, chord_register = registers["solo"][lead.name]["melody"], registers["solo"][lead.name]["chords"]
    melody = compose_melody(plan, segments, register, rng)
    notes = list(melody)
    if plan.ensemble == "solo" and lead.family in ("piano", "organ", "strings") and bernoulli(rng, 0.35):
        notes += compose_second_voice(plan, segments, melody, chord_register[1] - 2)
    if chords:
        notes += compose_chords(plan, segments, chord_register, rng)
    if bass:
        notes += compose_bass(plan, segments, bass_register, rng)
    if plan.find_part("pad"):
        notes += compose_pad(segments, PAD_REGISTER)
    if plan.find_part("drums"):
        notes += compose_drums(plan, rng)
    return notes


def _add_expression(plan: PiecePlan, notes: Sequence[Note], rng: np.random.Generator) -> list[Note]:
    """Return the notes in order of time, with velocities from dynamics and metre, and slightly uneven times."""
    phrase = plan.beats_per_bar * (4 if plan.bars >= 7 else 2)
    jitter = 0.003 if plan.genre.name in ("electronic", "march", "rock") else 0.007  # seconds
    expressive = []
    for note in sorted(notes, key=lambda n: (n.start, n.role, n.pitch)):
        progress = note.start / plan.beats
        base = BASE_VELOCITY[plan.dynamics]
        base += {"building": 44 * progress - 24, "fading": 18 - 40 * progress}.get(plan.dynamics, 0)
        swell = 5 * math.sin(math.pi * ((note.start % phrase) / phrase))
        beat = note.start % plan.beats_per_bar
        accent = 6 if beat < 1e-6 else 2 if abs(beat - round(beat)) < 1e-6 else -3
        velocity = base + swell + accent + ROLE_VELOCITY[note.role] + note.velocity * 0.8 + truncated_normal(rng, 3.0)
        delay = 0.0 if note.start == 0 else max(-2 * jitter, min(2 * jitter, truncated_normal(rng, jitter)))
        expressive.append(replace(note, velocity=int(max(18, min(122, round(velocity)))), delay=note.delay + delay))
    return expressive


def _remove_overlaps(plan: PiecePlan, notes: Sequence[Note]) -> list[Note]:
    """Shorten or drop notes so that no instrument repeats a pitch that it still plays; melody notes win."""
    separate: list[Note] = []
    last_index: dict[tuple[str, int], int] = {}
    instruments = {p.role: p.instrument.name for p in plan.parts}
    for note in notes:
        key = (instruments[note.role], note.pitch)
        if key in last_index:
            previous = separate[last_index[key]]
            gap = note.start - previous.start
            if gap < 0.05:
                if note.role == "melody" and previous.role != "melody":
                    separate[last_index[key]] = note
                continue
            if previous.start + previous.length > note.start - 0.02:
                if previous.role == "melody" and note.role != "melody":
                    continue
                separate[last_index[key]] = replace(previous, length=gap - 0.02)
        last_index[key] = len(separate)
        separate.append(note)
    return separate
