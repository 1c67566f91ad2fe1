"""Chords, scales and voice leading against tables written by hand."""

import pytest

from cadenza.corpus.harmony import parse_numeral
from cadenza.corpus.theory import SCALES, TONICS, Key, chord_scale, lead_voices

A_MINOR, C_MAJOR, B_FLAT_MAJOR = Key(9, "aeolian"), Key(0, "ionian"), Key(10, "ionian")


def names(classes: tuple[int, ...]) -> set[str]:
    return {TONICS[c] for c in classes}


@pytest.mark.parametrize(
    ("key", "numeral", "label", "tones"),
    [
        (A_MINOR, "i", "A:min", {"A", "C", "E"}),
        (A_MINOR, "V7", "E:7", {"E", "G#", "B", "D"}),
        (A_MINOR, "VI", "F:maj", {"F", "A", "C"}),
        (A_MINOR, "iih7", "B:hdim7", {"B", "D", "F", "A"}),
        (A_MINOR, "VII", "G:maj", {"G", "B", "D"}),
        (C_MAJOR, "ii7", "D:min7", {"D", "F", "A", "C"}),
        (C_MAJOR, "IM7", "C:maj7", {"C", "E", "G", "B"}),
        (C_MAJOR, "bVII", "A#:maj", {"A#", "D", "F"}),
        (C_MAJOR, "V/V", "D:maj", {"D", "F#", "A"}),
        (B_FLAT_MAJOR, "vi", "G:min", {"G", "A#", "D"}),
    ],
)
def test_numerals_name_the_chords_of_the_textbook(key, numeral, label, tones):
    chord = parse_numeral(key, numeral)
    assert chord.label == label
    assert names(chord.pitch_classes) == tones


def test_keys_are_named_with_sharps_and_their_tonality():
    assert (A_MINOR.name, B_FLAT_MAJOR.name, Key(2, "dorian").name) == ("A minor", "A# major", "D minor")
    assert Key(7, "mixolydian").tonality == "major"


def test_the_dominant_raises_the_seventh_of_a_minor_scale():
    assert names(chord_scale(A_MINOR, parse_numeral(A_MINOR, "V7"))) == {"A", "B", "C", "D", "E", "F", "G#"}


@pytest.mark.parametrize("mode", SCALES)
@pytest.mark.parametrize("numeral", ["I7", "i", "IV", "V7", "bVII", "iio", "VI", "V/V"])
def test_a_chord_scale_holds_the_chord_and_no_three_semitones_in_a_row(mode, numeral):
    key = Key(5, mode)
    scale = set(chord_scale(key, parse_numeral(key, numeral)))
    assert set(parse_numeral(key, numeral).pitch_classes) <= scale
    assert 6 <= len(scale) <= 8


def test_voices_move_less_than_chords_in_root_position_would():
    chords = [parse_numeral(C_MAJOR, n) for n in ("I", "IV", "V", "vi", "ii", "V7", "I")]
    voicing, moved, parallel = None, 0, 0
    for chord in chords:
        following = lead_voices(voicing, chord, 50, 68)
        assert sorted({p % 12 for p in following}) == sorted(chord.pitch_classes)
        if voicing is not None:
            moved += abs(sum(following) / len(following) - sum(voicing) / len(voicing))
        voicing = following
    roots = [0, 5, 7, 9, 2, 7, 0]
    parallel = sum(abs(b - a) for a, b in zip(roots, roots[1:], strict=False))
    assert moved < parallel / 2
