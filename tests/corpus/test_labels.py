"""Labels of composed pieces: times and names agree with one another."""

import itertools

import mir_eval.chord
import numpy as np
import pytest

from cadenza.corpus.captions import ground_truth
from cadenza.corpus.compose import compose_piece


@pytest.fixture(scope="module")
def clips():
    return [ground_truth(compose_piece(21, i)) for i in range(80)]


def test_beats_follow_the_tempo_and_downbeats_the_metre(clips):
    for clip in clips:
        assert clip["beats"][0] == 0
        assert np.allclose(np.diff(clip["beats"]), 60 / clip["tempo"], atol=2e-3)
        every = {"4/4": 4, "3/4": 3, "6/8": 2}[clip["metre"]]
        assert clip["downbeats"] == clip["beats"][::every]
        assert len(clip["downbeats"]) == clip["bars"]


def test_chords_cover_the_clip_without_gaps_in_labels_that_mir_eval_reads(clips):
    for clip in clips:
        assert clip["chords"][0][0] == 0
        assert clip["chords"][-1][1] == clip["seconds"]
        for a, b in itertools.pairwise(clip["chords"]):
            assert a[1] == b[0]
            assert a[2] != b[2]
        assert all(start < end for start, end, _ in clip["chords"])
        mir_eval.chord.encode_many([label for *_, label in clip["chords"]])


def test_accompaniments_sound_the_chord_that_the_label_names(clips):
    inside = total = 0
    for clip in clips:
        for start, _, pitch, _, role in clip["notes"]:
            if role == "chords":
                near = start + 0.03
                label = next(c[2] for c in clip["chords"] if c[0] <= near < c[1])
                root, bitmap, _ = mir_eval.chord.encode(label)
                inside += bool(bitmap[(pitch - root) % 12])
                total += 1
    assert inside / total > 0.95


def test_instruments_and_families_agree(clips):
    for clip in clips:
        assert clip["families"] == sorted({i["family"] for i in clip["instruments"]})
        assert clip["lead_family"] == next(i["family"] for i in clip["instruments"] if i["role"] == "melody")
        roles = {i["role"] for i in clip["instruments"]}
        assert {n[4] for n in clip["notes"]} <= roles
        if clip["texture"] in ("solo", "alone"):
            assert len(clip["families"]) == 1
        if clip["texture"] == "alone":
            assert roles == {"melody"}


def test_density_is_the_rate_of_note_starts(clips):
    for clip in clips:
        starts = sorted(n[0] for n in clip["notes"] if n[4] != "drums")
        distinct = 1 + sum(b - a > 0.04 for a, b in itertools.pairwise(starts))
        rate = distinct / (clip["seconds"] - 0.8)
        if clip["density"] == "sparse":
            assert rate < 2.2 * 1.15
        if clip["density"] == "busy":
            assert rate > 4.0 * 0.85
    assert {c["density"] for c in clips} == {"sparse", "medium", "busy"}
