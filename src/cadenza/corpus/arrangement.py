"""Arrange the parts below a melody: chords, pad, bass and drums, each in the style of the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .piece import ChordSegment, Note, PiecePlan, bernoulli, choice
from .tables import BassNote, Groove, Register, load_tables
from .theory import chord_scale, lead_voices, nearest_pitch, pitches_in_range

Voicing = tuple[int, ...]
Hit = tuple[float, float, Voicing, int]  # start after the chord's and length in beats, pitches, accent in velocity

STROKE_SECONDS = {"strum": 0.011, "block": 0.004, "beats": 0.003}  # from one pitch of a hit to the next
ROLLED_INSTRUMENTS = ("harp", "nylon guitar", "steel guitar", "piano", "jazz guitar")
STROKE_VELOCITY = {"X": 12, "x": 0, "o": -22}
CRASH_STYLES = ("rock", "electronic", "shuffle", "march", "funk")
CHOP_GRIDS = ("x..x..x...x.x...", "x.xx..x.x.xx..x.", "..x...x.x.x...xx", "x...x.xx..x.x...")
COMP_RHYTHMS = (
    ((0.0, 1.2), (1.5, 0.5)),
    ((0.0, 0.4), (2.5, 0.9)),
    ((0.0, 0.9), (1.5, 0.4), (3.0, 0.6)),
    ((0.0, 2.2), (2.5, 0.5)),
)


def compose_chords(
    plan: PiecePlan, segments: Sequence[ChordSegment], register: Register, rng: np.random.Generator
) -> list[Note]:
    """Compose the accompaniment: chords in the style of the plan, the last one held."""
    style = ACCOMPANIMENTS[plan.accompaniment]
    part = plan.find_part("chords")
    rolled = part is not None and part.instrument.name in ROLLED_INSTRUMENTS and bernoulli(rng, 0.5)
    stroke = STROKE_SECONDS.get(plan.accompaniment, 0.002)
    notes: list[Note] = []
    voicing: Voicing | None = None
    for segment in segments[:-1]:
        voicing = lead_voices(voicing, segment.chord, *register)
        for start, length, pitches, accent in style(plan, segment, voicing, rng):
            for i, pitch in enumerate(pitches):
                notes.append(Note(segment.start + start, length, pitch, accent, "chords", stroke * i))
    last = segments[-1]
    voicing = lead_voices(voicing, last.chord, *register)
    pitches, stroke = ((*voicing, voicing[0] + 12), 0.035) if rolled else (voicing, 0.006)
    for i, pitch in enumerate(sorted(pitches)):
        notes.append(Note(last.start, last.beats + 0.5, pitch, 0, "chords", min(0.12, stroke * i)))
    return notes


def _arpeggio(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Up and down the chord, with its lowest tone doubled at the top."""
    up = [*voicing[:3], voicing[0] + 12]
    return _repeat(segment, _broken_step(plan), [(p,) for p in (*up, *up[-2:0:-1])], 1.8)


def _sixteenth_arpeggio(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Even sixteenths up the chord."""
    step = 0.25 if plan.beat_seconds * 0.25 >= 0.1 else 0.5
    return _repeat(segment, step, [(p,) for p in (*voicing[:3], voicing[0] + 12)], 0.8)


def _broken(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """The lowest tone, then the others together."""
    upper = 2 if plan.subdivision == 3 or plan.beats_per_bar == 3 else 1
    step = 1.0 if plan.beats_per_bar == 3 else _broken_step(plan)
    return _repeat(segment, step, [voicing[:1], *[voicing[1:3]] * upper], 1.1)


def _alberti(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Low, high, middle, high."""
    order = (0, 1, 2) if plan.subdivision == 3 else (0, 2, 1, 2)
    return _repeat(segment, _broken_step(plan), [(voicing[i],) for i in order], 1.0)


def _block(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """The whole chord, repeated every second beat."""
    step = 1.0 if plan.beats_per_bar == 2 or plan.density == "busy" else 2.0 if plan.beats_per_bar == 4 else 3.0
    return _repeat(segment, min(step, segment.beats), [voicing], 0.97)


def _beats(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """The whole chord on every beat."""
    return _repeat(segment, 1.0, [voicing], 0.97)


def _strum(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Down and up strokes over five strings."""
    down = tuple(sorted({*voicing, voicing[0] + 12, voicing[1] + 12}))[:5]
    up = down[-3:]
    if plan.subdivision == 3:
        strokes = [(0, down, 8), (2 / 3, up, -6), (1, down, 4), (5 / 3, up, -6)]
    elif plan.beats_per_bar == 3:
        strokes = [(0, down, 8), (1, down, 0), (1.5, up, -8), (2, down, 0), (2.5, up, -8)]
    else:
        strokes = [(0, down, 8), (1, down, 0), (1.5, up, -8), (2, down, 2), (2.5, up, -8), (3, down, 0), (3.5, up, -8)]
        if plan.density == "busy":
            strokes.insert(1, (0.5, up, -10))
    strokes = [stroke for stroke in strokes if stroke[0] < segment.beats - 1e-6]
    ends = [start for start, *_ in strokes[1:]] + [segment.beats]
    return [(start, (end - start) * 0.95, p, accent) for (start, p, accent), end in zip(strokes, ends, strict=True)]


def _eighths(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Root and fifth in eighths."""
    root = _root_of(segment, voicing)
    return _repeat(segment, 1 / plan.subdivision, [tuple(sorted((root, root + 7 if root <= 63 else root - 5)))], 0.75)


def _sixteenths(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Short syncopated chords on a grid of sixteenths."""
    grid = choice(rng, CHOP_GRIDS)
    return [(i / 4, 0.18, voicing, 5 if i % 4 == 0 else -2) for i in range(min(16, int(segment.beats * 4))) if grid[i] == "x"]


def _offbeat(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Short chords between the beats."""
    return [(i + 0.5, 0.3, voicing, 2) for i in range(int(segment.beats))]


def _comp(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Syncopated chords of a jazz pianist."""
    hits = ((0.0, 0.6), (2 / 3, 0.3), (1.0, 0.6), (5 / 3, 0.3)) if plan.subdivision == 3 else choice(rng, COMP_RHYTHMS)
    return [(start, length, voicing, 3 if start == 0 else 0) for start, length in hits if start + 0.2 < segment.beats]


def _shuffle(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Root with fifth and root with sixth in turn, in swung eighths."""
    root, repeats = _root_of(segment, voicing), plan.subdivision
    return _repeat(segment, 1 / plan.subdivision, [(root, root + 7)] * repeats + [(root, root + 9)] * repeats, 0.8)


def _oom_pah(plan: PiecePlan, segment: ChordSegment, voicing: Voicing, rng: np.random.Generator) -> list[Hit]:
    """Chords on the weak beats, between the bass notes."""
    if plan.subdivision == 3:
        starts = [beat + 2 / 3 for beat in range(int(segment.beats))]
    elif plan.beats_per_bar == 3:
        starts = [1.0, 2.0]
    else:
        starts = [1.0, 3.0] if plan.bpm > 112 else [0.5, 1.5, 2.5, 3.5]
    return [(start, 0.45, voicing, -2) for start in starts if start < segment.beats - 1e-6]


ACCOMPANIMENTS: dict[str, Callable[[PiecePlan, ChordSegment, Voicing, np.random.Generator], list[Hit]]] = {
    "arpeggio": _arpeggio,
    "sixteenth arpeggio": _sixteenth_arpeggio,
    "broken": _broken,
    "alberti": _alberti,
    "block": _block,
    "beats": _beats,
    "strum": _strum,
    "eighths": _eighths,
    "sixteenths": _sixteenths,
    "offbeat": _offbeat,
    "comp": _comp,
    "shuffle": _shuffle,
    "oom-pah": _oom_pah,
}


def _broken_step(plan: PiecePlan) -> float:
    """Return the step of broken chords in beats, between 0.15 and 0.5 seconds."""
    if plan.subdivision == 3:
        return 1 / 3
    step = 0.5
    if plan.density == "busy" and plan.beat_seconds * 0.25 >= 0.16:
        step = 0.25
    if plan.density == "sparse" and plan.beat_seconds <= 0.6:
        step = 1.0
    return 1.0 if plan.beat_seconds * step < 0.15 else step


def _repeat(segment: ChordSegment, step: float, order: Sequence[Voicing], length: float) -> list[Hit]:
    """Return hits at every step of a chord, `length` steps long, with the voicings in turn."""
    starts = [i * step for i in range(round(segment.beats / step))]
    return [
        (start, step * length, order[i % len(order)], 4 if abs(start % 1.0) < 1e-6 else -3) for i, start in enumerate(starts)
    ]


def _root_of(segment: ChordSegment, voicing: Voicing) -> int:
    return next(p for p in voicing if p % 12 == segment.chord.root)


def compose_pad(segments: Sequence[ChordSegment], register: Register) -> list[Note]:
    """Compose held chords; tones common to successive chords are tied."""
    notes: list[Note] = []
    starts: dict[int, float] = {}  # of the pitches that sound
    voicing: Voicing | None = None
    for segment in segments:
        voicing = lead_voices(voicing, segment.chord, *register)
        for pitch in [p for p in starts if p not in voicing]:
            start = starts.pop(pitch)
            notes.append(Note(start, segment.start - start, pitch, 0, "pad"))
        for pitch in voicing:
            starts.setdefault(pitch, segment.start)
    return notes + [Note(start, segments[-1].end - start + 0.5, pitch, 0, "pad") for pitch, start in starts.items()]


def compose_bass(plan: PiecePlan, segments: Sequence[ChordSegment], register: Register, rng: np.random.Generator) -> list[Note]:
    """Compose the bass in the style of the plan, with a long root at the end."""
    low, high = register
    riff = choice(rng, load_tables().bass_riffs["funk" if plan.bass_style == "funk" else "syncopated"])
    notes: list[Note] = []
    last = low + (high - low) * 0.4
    for i, segment in enumerate(segments):
        root = nearest_pitch((segment.chord.root,), 0.6 * last + 0.4 * (low + 5), low, min(high, low + 14))
        last = root
        if segment is segments[-1]:
            notes.append(Note(segment.start, segment.beats + 0.4, root, 2, "bass"))
        elif plan.bass_style in ("walking", "beats") and plan.subdivision == 2:
            line = _walk(plan, segment, segments[i + 1], root, register, rng)
            notes += [Note(segment.start + beat, 0.92, p, 4 if beat == 0 else 0, "bass") for beat, p in enumerate(line)]
            last = line[-1]
        elif plan.bass_style in ("walking", "beats"):
            notes += [Note(segment.start + beat, 0.9, root, 2, "bass") for beat in range(round(segment.beats))]
        else:
            bar = int(segment.start // plan.beats_per_bar)
            for start, length, tone, accent in _bass_pattern(plan, segment, riff, bar):
                pitch = _bass_pitch(segment, tone, root, high)
                notes.append(Note(segment.start + start, min(length, segment.beats - start), pitch, accent, "bass"))
    return notes


def _walk(
    plan: PiecePlan, segment: ChordSegment, following: ChordSegment, root: int, register: Register, rng: np.random.Generator
) -> list[int]:
    """Return one pitch per beat: the root, then scale and chord tones that approach the next root."""
    low, high = register
    count = max(1, round(segment.beats))
    goal = nearest_pitch((following.chord.root,), root, low, high)
    line = [root]
    scale = chord_scale(plan.key, segment.chord)
    for i in range(1, count):
        last = line[-1]
        if i == count - 1:
            approaches = [goal - 1, goal + 1, goal - 2, goal + 2]
            options = [p for p in approaches if p % 12 in scale and p != last] or approaches[:2]
        elif i == 2 or (plan.bass_style == "walking" and bernoulli(rng, 0.5)):
            options = [p for p in pitches_in_range(segment.chord.pitch_classes, last - 7, last + 7) if p != last]
        else:
            options = [p for p in pitches_in_range(scale, last - 3, last + 3) if p != last]
        options = [p for p in options if low <= p <= high] or [last]
        line.append(min(options, key=lambda p: abs(p - goal) * 0.3 + abs(p - last) * 0.2 + rng.random() * 1.5))
    return line


def _bass_pattern(plan: PiecePlan, segment: ChordSegment, riff: Sequence[BassNote], bar: int) -> list[BassNote]:
    """Return the notes of a bass style that repeats a pattern in every chord."""
    size, step = segment.beats, 1 / plan.subdivision
    style = plan.bass_style
    if style == "long":
        length = 2.0 if plan.beats_per_bar == 4 and plan.beat_seconds < 0.8 and size >= 4 else size
        pattern = [(i * length, length * 0.97, "root", 0) for i in range(round(size / length))]
    elif style == "root-fifth":
        half = 2.0 if plan.beats_per_bar != 2 else 1.0
        pattern = [(0.0, min(half, size) * 0.95, "root", 4), (half, (size - half) * 0.9, "fifth", 0)]
    elif style == "oom":
        first = "fifth" if bar % 2 and plan.beats_per_bar == 3 else "root"
        pattern = [(0.0, 0.8, first, 5)]
        if plan.beats_per_bar != 3:
            pattern.append((plan.beats_per_bar / 2, 0.8, "fifth", 2))
    elif style in ("eighths", "shuffle"):
        tones = ["root"] if style == "eighths" else ["root", "root", "fifth", "sixth"]
        pattern = [
            (i * step, step * 0.85, tones[i % len(tones)], 4 if i % plan.subdivision == 0 else -4)
            for i in range(round(size / step))
        ]
    elif style == "offbeat":
        pattern = [(0.0, 0.4, "root", 4), *((i + 0.5, 0.42, "root", 2) for i in range(int(size)))]
    else:
        pattern = riff
    return [note for note in pattern if note[0] < size - 1e-6]


def _bass_pitch(segment: ChordSegment, tone: str, root: int, high: int) -> int:
    tones = segment.chord.pitch_classes
    fifth = (tones[2] - tones[0]) % 12
    seventh = 11 if segment.chord.quality == "maj7" else 10
    pitch = root + {"root": 0, "fifth": fifth, "octave": 12, "seventh": seventh, "sixth": 9}[tone]
    return pitch - 12 if pitch > high else pitch


def compose_drums(plan: PiecePlan, rng: np.random.Generator) -> list[Note]:
    """Compose a groove in every bar, a fill before each new phrase, and a stroke on the last chord."""
    tables, style, name = load_tables(), plan.genre.drums, plan.time_signature.name
    if style is None or name not in tables.grooves[style]:
        return []
    groove, fill = choice(rng, tables.grooves[style][name]), choice(rng, tables.fills[name])
    crashes = style in CRASH_STYLES
    fills = style not in ("waltz", "folk")
    final = float(plan.final_beat)
    last_bar = (plan.final_beat - 1) // plan.beats_per_bar
    phrase = 4 if plan.bars >= 6 else plan.bars
    notes: list[Note] = []
    for bar in range(last_bar + 1):
        start = float(bar * plan.beats_per_bar)
        ends_phrase = bar == last_bar or (bar + 1) % phrase == 0
        complete = start + plan.beats_per_bar <= final + 1e-6
        notes += _drum_bar(plan, fill if fills and ends_phrase and complete else groove, start)
        if crashes and bar % phrase == 0 and (bar or bernoulli(rng, 0.6)):
            notes.append(Note(start, 0.5, tables.drum_notes["crash"], -8, "drums"))
    notes.append(Note(final, 0.5, tables.drum_notes["kick"], 6, "drums"))
    notes.append(Note(final, 1.0, tables.drum_notes["crash" if crashes else "ride"], -8, "drums"))
    return notes


def _drum_bar(plan: PiecePlan, groove: Groove, start: float) -> list[Note]:
    """Return the strokes of one bar before the final beat."""
    steps = 3 if plan.subdivision == 3 else 4
    pitches = load_tables().drum_notes
    return [
        Note(start + i / steps, 0.2, pitches[drum], STROKE_VELOCITY[stroke], "drums")
        for drum, strokes in groove.items()
        for i, stroke in enumerate(strokes)
        if stroke in STROKE_VELOCITY and start + i / steps < plan.final_beat - 1e-6
    ]
