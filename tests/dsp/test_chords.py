"""Chord names, against pitch classes written out by hand and mir_eval's reading of Harte's syntax."""

import mir_eval
import numpy as np
import pytest

from cadenza.core.errors import RequestError
from cadenza.dsp.chords import NO_CHORD, parse_chord


@pytest.mark.parametrize(
    ("name", "root", "bass", "tones"),
    [
        ("C", 0, 0, {0, 4, 7}),
        ("Am", 9, 9, {9, 0, 4}),
        ("am", 9, 9, {9, 0, 4}),
        ("F#m7/C#", 6, 1, {6, 9, 1, 4}),
        ("Bbmaj7", 10, 10, {10, 2, 5, 9}),
        ("E♭7", 3, 3, {3, 7, 10, 1}),
        ("G7/F", 7, 5, {7, 11, 2, 5}),
        ("C/D", 0, 2, {0, 2, 4, 7}),
        ("C6/9", 0, 0, {0, 2, 4, 7, 9}),
        ("Bm7b5", 11, 11, {11, 2, 5, 9}),
    ],
)
def test_names_as_musicians_write_them(name: str, root: int, bass: int, tones: set[int]) -> None:
    found = parse_chord(name)
    assert (found.root, found.bass, found.pitch_classes) == (root, bass, tones)


@pytest.mark.parametrize(
    "name",
    [
        "C:maj",
        "F#:min",
        "Ab:min7",
        "D:7",
        "B:dim",
        "E:aug",
        "G:maj7/3",
        "A:min7/b3",
        "C:hdim7",
        "Db:sus4",
        "F:minmaj7",
        "Cb:maj6",
        "G:min6/5",
    ],
)
def test_harte_names_as_mir_eval_reads_them(name: str) -> None:
    root, tones, bass = mir_eval.chord.encode(name)
    found = parse_chord(name)
    assert found.root == root and found.bass == (root + bass) % 12
    assert found.pitch_classes == {(root + tone) % 12 for tone in np.flatnonzero(tones)} | {(root + bass) % 12}


@pytest.mark.parametrize("name", ["N", "n", "N.C.", " none "])
def test_no_chord(name: str) -> None:
    assert parse_chord(name) == NO_CHORD


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("H9", "German H is B"),
        ("Amx7", "'mx7' is not a chord quality"),
        ("C/H", "is not a bass note"),
        ("", "is not a chord"),
        ("X", "is not a chord"),
    ],
)
def test_what_is_no_chord_is_named(name: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_chord(name)
