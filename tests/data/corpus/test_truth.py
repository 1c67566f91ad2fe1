"""The records beside the audio: times and labels that agree with one another."""

import itertools

import mir_eval.chord
import numpy as np
import pytest

from cadenza.data.corpus.compose import compose
from cadenza.data.corpus.truth import truth


@pytest.fixture(scope="module")
def facts():
    return [truth(compose(21, i)) for i in range(80)]


def test_beats_follow_the_tempo_and_downbeats_the_metre(facts):
    for fact in facts:
        assert fact["beats"][0] == 0
        assert np.allclose(np.diff(fact["beats"]), 60 / fact["tempo"], atol=2e-3)
        every = {"4/4": 4, "3/4": 3, "6/8": 2}[fact["metre"]]
        assert fact["downbeats"] == fact["beats"][::every]
        assert len(fact["downbeats"]) == fact["bars"]


def test_chords_cover_the_clip_without_gaps_in_labels_that_mir_eval_reads(facts):
    for fact in facts:
        assert fact["chords"][0][0] == 0
        assert fact["chords"][-1][1] == fact["seconds"]
        for a, b in itertools.pairwise(fact["chords"]):
            assert a[1] == b[0]
            assert a[2] != b[2]
        assert all(start < end for start, end, _ in fact["chords"])
        mir_eval.chord.encode_many([label for *_, label in fact["chords"]])


def test_accompaniments_sound_the_chord_that_the_label_names(facts):
    inside = total = 0
    for fact in facts:
        for start, _, pitch, _, role in fact["notes"]:
            if role == "chords":
                near = start + 0.03
                label = next(c[2] for c in fact["chords"] if c[0] <= near < c[1])
                root, bitmap, _ = mir_eval.chord.encode(label)
                inside += bool(bitmap[(pitch - root) % 12])
                total += 1
    assert inside / total > 0.95


def test_instruments_and_families_agree(facts):
    for fact in facts:
        assert fact["families"] == sorted({i["family"] for i in fact["instruments"]})
        assert fact["lead_family"] == next(i["family"] for i in fact["instruments"] if i["role"] == "melody")
        roles = {i["role"] for i in fact["instruments"]}
        assert {n[4] for n in fact["notes"]} <= roles
        if fact["texture"] in ("solo", "alone"):
            assert len(fact["families"]) == 1
        if fact["texture"] == "alone":
            assert roles == {"melody"}


def test_density_is_the_rate_of_note_starts(facts):
    for fact in facts:
        starts = sorted(n[0] for n in fact["notes"] if n[4] != "drums")
        distinct = 1 + sum(b - a > 0.04 for a, b in itertools.pairwise(starts))
        rate = distinct / (fact["seconds"] - 0.8)
        if fact["density"] == "sparse":
            assert rate < 2.2 * 1.15
        if fact["density"] == "busy":
            assert rate > 4.0 * 0.85
    assert {f["density"] for f in facts} == {"sparse", "medium", "busy"}
