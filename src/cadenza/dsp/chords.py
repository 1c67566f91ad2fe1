"""Chords: their names as pitch classes, as a musician writes them (F#m7/C#) and in Harte's syntax (F#:min7/5)."""

import difflib
import re
from dataclasses import dataclass

from cadenza.core.errors import RequestError

_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_DEGREES = (0, 2, 4, 5, 7, 9, 11)  # semitones of the degrees of a major scale
_NOTE = r"([A-Ga-g])([#♯b♭]*)"
_NONE = {"n", "n.c.", "nc", "none"}
_TONES = {  # semitones above the root -> every way to write the quality
    (0, 4, 7): ("", "maj", "M"),
    (0, 3, 7): ("m", "min", "-", "mi"),
    (0, 3, 6): ("dim", "o", "°"),
    (0, 4, 8): ("aug", "+"),
    (0,): ("1",),
    (0, 7): ("5",),
    (0, 2, 7): ("sus2",),
    (0, 5, 7): ("sus4", "sus"),
    (0, 4, 7, 9): ("6", "maj6", "M6"),
    (0, 3, 7, 9): ("m6", "min6", "-6"),
    (0, 2, 4, 7, 9): ("69", "6/9"),
    (0, 4, 7, 10): ("7", "dom7"),
    (0, 4, 7, 11): ("maj7", "M7", "Δ", "Δ7"),
    (0, 3, 7, 10): ("m7", "min7", "-7", "mi7"),
    (0, 3, 7, 11): ("mM7", "mmaj7", "minmaj7", "m(maj7)"),
    (0, 3, 6, 9): ("dim7", "o7", "°7"),
    (0, 3, 6, 10): ("m7b5", "min7b5", "hdim7", "ø", "ø7"),
    (0, 4, 8, 10): ("aug7", "+7", "7#5"),
    (0, 4, 6, 10): ("7b5",),
    (0, 5, 7, 10): ("7sus4", "7sus", "sus4(b7)"),
    (0, 2, 4, 7): ("add9", "maj(9)"),
    (0, 2, 3, 7): ("madd9", "min(9)"),
    (0, 2, 4, 7, 10): ("9",),
    (0, 2, 4, 7, 11): ("maj9", "M9"),
    (0, 2, 3, 7, 10): ("m9", "min9", "-9"),
    (0, 1, 4, 7, 10): ("7b9",),
    (0, 3, 4, 7, 10): ("7#9",),
    (0, 2, 4, 5, 7, 10): ("11",),
    (0, 2, 3, 5, 7, 10): ("m11", "min11"),
    (0, 2, 4, 7, 9, 10): ("13",),
    (0, 2, 3, 7, 9, 10): ("m13", "min13"),
}
_QUALITIES = {name: tones for tones, names in _TONES.items() for name in names}


@dataclass(frozen=True)
class Chord:
    """Pitch classes from 0 for C to 11 for B; no tones where no chord sounds."""

    root: int | None
    bass: int | None
    pitch_classes: frozenset[int]


NO_CHORD = Chord(None, None, frozenset())


def parse_chord(name: str) -> Chord:
    """The chord of a name such as `Am`, `Bbmaj7`, `G7/B` or `A:min7/b3`, or `N` for none; RequestError names what is none."""
    text = name.strip()
    if text.lower() in _NONE:
        return NO_CHORD
    found = re.fullmatch(_NOTE + ":?(.*)", text.replace("6/9", "69"))
    if found is None:
        hint = "; the German H is B here" if text[:1] in {"H", "h"} else ""
        raise RequestError(f"'{name}' is no chord{hint}; write a root and a quality, such as C, F#m7, Bbmaj7/D, or N for none")
    quality, _, bass = found[3].partition("/")
    tones = _QUALITIES.get(quality.replace("♯", "#").replace("♭", "b"))
    if tones is None:
        close = difflib.get_close_matches(quality, _QUALITIES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "there are m, 7, maj7, m7, dim, aug, sus4, 6, 9, m7b5 and more"
        raise RequestError(f"'{name}': there is no chord quality '{quality}'; {hint}")
    root = parse_pitch_class(found[1] + found[2])
    low = root if not bass else _bass(name, bass, root)
    return Chord(root, low, frozenset((root + tone) % 12 for tone in tones) | {low})


def parse_pitch_class(name: str) -> int:
    """0 for C to 11 for B, with any number of sharps and flats; RequestError for what is no note."""
    found = re.fullmatch(_NOTE, name.strip())
    if found is None:
        raise RequestError(f"'{name}' is not a note name such as C, F# or Bb")
    return (_LETTERS[found[1].upper()] + _shift(found[2])) % 12


def _bass(name: str, text: str, root: int) -> int:
    """A note, or a degree of the root's major scale."""
    if re.fullmatch(_NOTE, text):
        return parse_pitch_class(text)
    if degree := re.fullmatch(r"([#♯b♭]*)(\d+)", text):
        step = int(degree[2]) - 1
        return (root + _DEGREES[step % 7] + _shift(degree[1])) % 12
    raise RequestError(f"'{name}': '{text}' is no bass; write a note such as E or Bb after the /")


def _shift(accidentals: str) -> int:
    return sum(1 if sign in "#♯" else -1 for sign in accidentals)
