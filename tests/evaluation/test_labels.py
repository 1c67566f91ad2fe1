"""Labels, targets and estimates compared with sidecars and captions."""

import math

import pytest
import torch

from cadenza.core.errors import DataError
from cadenza.dsp.chords import parse_pitch_class
from cadenza.evaluation.estimator_net import MIN_TEMPO, NUM_TEMPI, TEMPI_PER_OCTAVE, decode_tempo, pitch_classes
from cadenza.evaluation.estimators import Estimate, chord_accuracy, f1, melody_accuracy
from cadenza.evaluation.labels import NO_CHORD, NO_MELODY, UNKNOWN, chord_class, key_class, labels_from_sidecar
from cadenza.evaluation.targets import (
    ATTRIBUTES,
    handwritten_prompts,
    targets_from_caption,
    targets_from_handwritten,
    targets_from_values,
)

FAMILIES = ("piano", "bass", "drums", "reed")
SIDECAR = {
    "tempo": 120.0, "key": "A minor", "families": ["bass", "piano"], "lead_family": "piano", "seconds": 2.0,
    "instruments": [
        {"role": "melody", "name": "piano", "family": "piano"}, {"role": "bass", "name": "double bass", "family": "bass"},
    ],
    "chords": [[0.0, 0.8, "A:min7"], [0.8, 1.6, "B:dim"], [1.6, 2.0, "D#:maj"]],
    "notes": [[0.0, 0.5, 69, 80, "melody"], [0.0, 2.0, 45, 80, "bass"], [1.0, 2.0, 72, 80, "melody"]],
}  # fmt: skip


def heard(tempo=120.0, key=21, families=(0.9, 0.9, 0.1, 0.1)) -> Estimate:
    none = torch.zeros(0, dtype=torch.long)
    return Estimate(tempo, key, torch.tensor(families), 0, none, none)


def test_names_as_classes():
    assert [parse_pitch_class(n) for n in ("C", "F#", "Gb", "Bb", "B", "Cb", "E♭", "e")] == [0, 6, 6, 10, 11, 11, 3, 4]
    assert (key_class("C major"), key_class("A minor"), key_class("Bb minor")) == (0, 21, 22)
    assert [chord_class(n) for n in ("N", "A:min7", "G:7", "C", "F#:maj/5")] == [NO_CHORD, 21, 7, 0, 6]
    assert chord_class("B:dim") == chord_class("D:sus4") == UNKNOWN
    with pytest.raises(DataError, match="key"):
        key_class("H moll")


def test_truth_is_looked_up_at_the_middle_of_frames():
    truth = labels_from_sidecar(SIDECAR, 25, families=FAMILIES)
    assert truth.families.tolist() == [True, True, False, False] and truth.lead == 0 and truth.key == 21
    # frames of 0.08 s: the first chord holds ten of them, the diminished one is neither major nor minor
    assert truth.chords.tolist() == [21] * 10 + [UNKNOWN] * 10 + [3] * 5
    assert truth.playing[0].tolist() == [True] * 7 + [False] * 5 + [True] * 13 and truth.playing[1].all()
    assert not truth.playing[2:].any()
    assert truth.melody.tolist() == [69 - 24] * 6 + [NO_MELODY] * 6 + [72 - 24] * 13


def test_a_family_nobody_estimates_is_an_error():
    with pytest.raises(DataError, match="choir"):
        labels_from_sidecar({**SIDECAR, "families": ["choir"]}, 1, families=FAMILIES)


def test_tempo_from_the_bins_it_lies_between():
    for bpm in (50.0, 93.0, 171.0):
        place = TEMPI_PER_OCTAVE * math.log2(bpm / MIN_TEMPO)
        logits = -0.5 * (torch.arange(NUM_TEMPI) - place).square()
        assert decode_tempo(logits) == pytest.approx(bpm, rel=0.002)


def test_octaves_of_a_melody_are_one_pitch_class():
    chances = torch.zeros(1, 92, 1)
    chances[0, [60 - 24, 72 - 24], 0] = 0.3
    chances[0, [61 - 24, 91], 0] = torch.tensor([0.35, 0.05])
    folded = pitch_classes(chances)[0, :, 0]
    assert folded.argmax() == 0
    assert folded[[0, 1, 12]].tolist() == pytest.approx([0.6, 0.35, 0.05])


def test_frame_scores_leave_out_what_has_no_truth():
    assert chord_accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, UNKNOWN, 0, 4])) == pytest.approx(2 / 3)
    assert math.isnan(chord_accuracy(torch.tensor([1]), torch.tensor([UNKNOWN])))
    wanted = torch.tensor([60 - 24, 61 - 24, NO_MELODY, UNKNOWN])
    assert melody_accuracy(torch.tensor([0, 0, 5, 5]), wanted) == pytest.approx(0.5)


def test_f1_by_hand():
    present = torch.tensor([[True, False], [True, False], [False, False]])
    wanted = torch.tensor([[True, False], [False, False], [True, False]])
    assert f1(present, wanted).tolist() == [0.5, 1.0]


def test_values_are_their_own_targets():
    wish = targets_from_values(SIDECAR, {"tempo", "key"}, seconds=2.0)
    assert (
        ATTRIBUTES["tempo"](heard(124.7), wish) == 1
        and ATTRIBUTES["tempo"](heard(125.0), wish) == 0
        and ATTRIBUTES["tempo"](heard(60.0), wish) == 0
    )
    assert ATTRIBUTES["key"](heard(key=21), wish) == 1 and ATTRIBUTES["key"](heard(key=0), wish) == 0
    assert math.isnan(ATTRIBUTES["family"](heard(), wish)) and math.isnan(ATTRIBUTES["pace"](heard(), wish))


def test_a_caption_has_targets_only_for_its_mentions():
    wish = targets_from_caption("Upbeat-tempo jazz with piano", ("tempo", "genre", "players"), SIDECAR, FAMILIES)
    assert wish.tempo is None and wish.key is None and wish.tempo_range == (116, 152)
    assert wish.families is not None and wish.optional_families is not None
    assert wish.families.tolist() == [True, False, False, False]
    assert wish.optional_families.tolist() == [False, True, False, False]  # the bass plays, but is not mentioned
    assert ATTRIBUTES["family"](heard(families=(0.9, 0.9, 0.1, 0.1)), wish) == 1
    assert ATTRIBUTES["family"](heard(families=(0.9, 0.1, 0.9, 0.1)), wish) == pytest.approx(2 / 3)
    assert ATTRIBUTES["family"](heard(families=(0.1, 0.9, 0.1, 0.1)), wish) == 0
    assert ATTRIBUTES["pace"](heard(150.0), wish) == 1 and ATTRIBUTES["pace"](heard(100.0), wish) == 0


def test_instruments_are_recognised_as_whole_words():
    wish = targets_from_caption("pianoforte and contrabass, 120 bpm, A minor", ("players", "bpm", "key"), SIDECAR, FAMILIES)
    assert wish.families is not None and wish.families.tolist() == [True, True, False, False]
    assert (wish.tempo, wish.key) == (120, 21)
    assert targets_from_caption("a pianola", ("players",), SIDECAR, FAMILIES).families is None


def test_the_hand_written_prompts_say_what_is_noted_of_them():
    entries = handwritten_prompts()
    assert len({entry["prompt"] for entry in entries}) == len(entries) == 60
    known = ("piano", "mallets", "organ", "guitar", "bass", "strings", "brass", "reed", "flute", "synth", "drums")
    for entry in entries:
        assert set(entry["families"]) <= set(known) and entry["families"], entry
        assert "tempo" not in entry or str(entry["tempo"]) in entry["prompt"], entry
        wish = targets_from_handwritten(entry, known)
        if "key" in entry:
            tonic, mode = entry["key"].split()
            spelled = tonic.replace("#", " sharp").replace("b", " flat")
            found = entry["prompt"].lower().replace("-", " ")
            assert f"{spelled} {mode}".lower() in found, entry
            assert wish.key == key_class(entry["key"])
    assert {family for entry in entries for family in entry["families"]} == set(known)
