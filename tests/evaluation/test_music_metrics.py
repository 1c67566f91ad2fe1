"""Chords and events over time against mir_eval and by hand."""

import math

import mir_eval
import numpy as np
import pytest

from cadenza.evaluation.music_metrics import (
    BEAT_TOLERANCE,
    ONSET_TOLERANCE,
    ChordTimeline,
    chart_iou,
    events_f1,
    majmin_accuracy,
    pitch_class_cosine,
)

ROOTS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
QUALITIES = ("maj", "min", "7", "maj7", "min7", "dim", "hdim7", "sus4", "9", "maj6")


def progression(rng: np.random.Generator, qualities: tuple[str, ...], seconds: float) -> list[tuple[float, float, str]]:
    """Chords and silences of random lengths; some gaps are left open."""
    bounds = np.sort(np.append(rng.uniform(0, seconds, 9), [0.0, seconds]))
    names = ["N" if rng.random() < 0.1 else f"{rng.choice(ROOTS[:4])}:{rng.choice(qualities)}" for _ in bounds[1:]]
    return [
        (a, b, name) for a, b, name in zip(bounds, bounds[1:], names, strict=False) if name != "N" or rng.random() < 0.5
    ] or [(0.0, seconds, "C:maj")]


def padded(spans: list[tuple[float, float, str]], seconds: float) -> tuple[np.ndarray, list[str]]:
    """Intervals for mir_eval, in which every moment has a label."""
    found, at = [], 0.0
    for start, end, name in [*spans, (seconds, seconds, "N")]:
        if start > at:
            found.append((at, start, "N"))
        if end > start:
            found.append((start, end, name))
        at = end
    return np.array([(a, b) for a, b, _ in found]), [name for _, _, name in found]


@pytest.mark.parametrize("seed", range(30))
def test_overlap_is_majmin_of_mir_eval(seed):
    rng = np.random.default_rng(seed)
    wanted = progression(rng, QUALITIES, 10.0)
    heard = progression(rng, ("maj", "min"), float(rng.uniform(6, 14)))
    end = wanted[-1][1]
    labels = padded(heard, max(heard[-1][1], end))
    theirs = mir_eval.chord.evaluate(*padded(wanted, end), *labels)["majmin"]
    assert majmin_accuracy(ChordTimeline.of(heard), ChordTimeline.of(wanted)) == pytest.approx(theirs, abs=1e-9)


def test_overlap_and_iou_by_hand():
    wanted = ChordTimeline.of([(0, 2, "C:maj"), (2, 4, "A:min7")])
    heard = ChordTimeline.of([(0, 1, "C:maj"), (1, 2, "C:min"), (2, 4, "A:min")])
    assert majmin_accuracy(heard, wanted) == pytest.approx(3 / 4)
    assert chart_iou(heard, wanted) == pytest.approx(3 / 5)  # 3 seconds in both; 4 + 4 - 3 in either
    assert majmin_accuracy(wanted, wanted) == chart_iou(wanted, wanted) == 1
    nothing = ChordTimeline.of_frames([24] * 50, 12.5)
    assert majmin_accuracy(nothing, wanted) == chart_iou(nothing, wanted) == 0


def test_chords_that_are_neither_major_nor_minor_are_left_out():
    wanted = ChordTimeline.of([(0, 1, "C:dim"), (1, 4, "C:maj")])
    heard = ChordTimeline.of([(0, 1, "G:maj"), (1, 2, "C:maj")])
    assert majmin_accuracy(heard, wanted) == pytest.approx(1 / 3) == chart_iou(heard, wanted)
    unknown = ChordTimeline.of([(0, 1, "C:dim")])
    assert math.isnan(majmin_accuracy(heard, unknown)) and math.isnan(chart_iou(heard, unknown))


@pytest.mark.parametrize("seed", range(20))
def test_iou_is_that_of_sets_of_moments(seed):
    """Counted over ten thousand moments as sets of (moment, chord)."""
    rng = np.random.default_rng(seed)
    wanted, heard = (ChordTimeline.of(progression(rng, ("maj", "min"), 10.0)) for _ in range(2))
    moments = (np.arange(10_000) + 0.5) / 1000
    a, b = ({(i, c) for i, c in enumerate(chart.at(moments).tolist()) if c != 24} for chart in (wanted, heard))
    assert chart_iou(heard, wanted.truncate(10.0)) == pytest.approx(len(a & b) / len(a | b), abs=0.005)


def test_frames_and_spans_are_the_same_chart():
    frames = [0, 0, 0, 21, 21, 24, 24, 24]
    spans = ChordTimeline.of([(0, 0.3, "C:maj"), (0.3, 0.5, "A:min")])
    by_frame = ChordTimeline.of_frames(frames, 10.0)
    moments = np.arange(16) * 0.05 + 0.01
    assert by_frame.at(moments).tolist() == np.repeat(frames, 2).tolist() == spans.at(moments).tolist()
    assert by_frame.truncate(0.4).bounds.tolist() == pytest.approx([0, 0.3, 0.4])


@pytest.mark.parametrize("seed", range(30))
def test_events_are_matched_as_by_mir_eval(seed):
    rng = np.random.default_rng(seed)
    wanted = np.sort(rng.uniform(0, 10, rng.integers(1, 60)))
    heard = np.sort(np.append(wanted + rng.normal(0, 0.06, len(wanted)), rng.uniform(0, 10, rng.integers(0, 30))))
    heard = heard[heard > 0]
    assert events_f1(heard, wanted, BEAT_TOLERANCE) == pytest.approx(mir_eval.beat.f_measure(wanted, heard))
    expected = mir_eval.onset.f_measure(wanted, heard, window=ONSET_TOLERANCE)[0]
    assert events_f1(heard, wanted, ONSET_TOLERANCE) == pytest.approx(expected)


def test_events_without_any():
    none, some = np.zeros(0), np.array([1.0])
    assert events_f1(none, none, BEAT_TOLERANCE) == 1
    assert events_f1(some, none, BEAT_TOLERANCE) == events_f1(none, some, BEAT_TOLERANCE) == 0


def test_agreement_is_the_mean_cosine_of_one_hot_chromas():
    rng = np.random.default_rng(0)
    heard, wanted = rng.integers(0, 13, 200), rng.integers(0, 13, 200)
    chroma = np.eye(13)[:, :12]  # silence is the zero vector
    cosines = (chroma[heard] * chroma[wanted]).sum(1)[wanted != 12]
    assert pitch_class_cosine(heard, wanted) == pytest.approx(cosines.mean())
    assert pitch_class_cosine(wanted[:100], wanted) == pytest.approx((wanted[:100] != 12).sum() / (wanted != 12).sum())
    assert math.isnan(pitch_class_cosine(heard, np.full(200, 12)))


def test_melody_agreement_is_raw_chroma_accuracy_of_mir_eval():
    """Where a melody sounds: mir_eval counts it in cents, here in semitones."""
    rng = np.random.default_rng(1)
    wanted, heard = rng.integers(48, 84, 300), rng.integers(48, 84, 300)
    voiced = rng.random(300) < 0.8
    hertz = [440 * 2 ** ((pitch - 69) / 12) for pitch in (wanted, heard)]
    time = np.arange(300) * 0.08
    theirs = mir_eval.melody.evaluate(time, np.where(voiced, hertz[0], 0), time, hertz[1])["Raw Chroma Accuracy"]
    assert pitch_class_cosine(heard % 12, np.where(voiced, wanted % 12, 12)) == pytest.approx(theirs)
