"""Chord names to pitch classes, in common notation (F#m7/C#) and in Harte's syntax (F#:min7/5)."""

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
    """Root, bass and all pitch classes, 0 for C to 11 for B; empty for no chord."""

    root: int | None
    bass: int | None
    pitch_classes: frozenset[int]


NO_CHORD = Chord(None, None, frozenset())


def parse_chord(name: str) -> Chord:
    """Parse a chord name such as `Am`, `Bbmaj7`, `G7/B` or `A:min7/b3`, or `N` for no chord.

    Raise RequestError, with the closest quality, for any other text.
    """
    text = name.strip()
    if text.lower() in _NONE:
        return NO_CHORD
    match = re.fullmatch(_NOTE + ":?(.*)", text.replace("6/9", "69"))
    if match is None:
        hint = "; the German H is B here" if text[:1] in {"H", "h"} else ""
        raise RequestError(
            f"'{name}' is not a chord{hint}; write a root and a quality, such as F#m7 or Bbmaj7/D, or N for none"
        )
    quality, _, bass = match[3].partition("/")
    tones = _QUALITIES.get(quality.replace("♯", "#").replace("♭", "b"))
    if tones is None:
        close = difflib.get_close_matches(quality, _QUALITIES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "available: m, 7, maj7, m7, dim, aug, sus4, 6, 9, m7b5 and more"
        raise RequestError(f"'{name}': '{quality}' is not a chord quality; {hint}")
    root = parse_pitch_class(match[1] + match[2])
    bass_class = _bass(name, bass, root) if bass else root
    return Chord(root, bass_class, frozenset((root + tone) % 12 for tone in tones) | {bass_class})


def parse_pitch_class(name: str) -> int:
    """Return 0 for C to 11 for B, with any number of sharps and flats; raise RequestError for other names."""
    match = re.fullmatch(_NOTE, name.strip())
    if match is None:
        raise RequestError(f"'{name}' is not a note name such as C, F# or Bb")
    return (_LETTERS[match[1].upper()] + _shift(match[2])) % 12


def _bass(name: str, text: str, root: int) -> int:
    """Return the pitch class of a note, or of a degree of the root's major scale."""
    if re.fullmatch(_NOTE, text):
        return parse_pitch_class(text)
    if degree := re.fullmatch(r"([#♯b♭]*)(\d+)", text):
        step = int(degree[2]) - 1
        return (root + _DEGREES[step % 7] + _shift(degree[1])) % 12
    raise RequestError(f"'{name}': '{text}' is not a bass note; write a note such as E or Bb after the /")


def _shift(accidentals: str) -> int:
    return sum(1 if sign in "#♯" else -1 for sign in accidentals)
