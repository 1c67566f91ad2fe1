"""Onsets, beats and chords as times, detected without training, and metrics that compare them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.evaluation.estimator_net import BAND_HOP, NO_PITCH_CLASS, SAMPLE_RATE
from cadenza.evaluation.labels import NO_CHORD, UNKNOWN, chord_class

RATE = SAMPLE_RATE / BAND_HOP  # band frames per second
BEAT_TOLERANCE, ONSET_TOLERANCE = 0.07, 0.05  # tolerances in seconds (MIREX)
_LAG = 2  # frames between which an increase is measured
_SMOOTH = 7  # frames of the smoothing window
_PEAK_RADIUS, _MEAN_RADIUS = 3, 10  # frames on either side of a peak for its maximum and its mean
_MIN_DEVIATIONS, _MIN_DISTANCE = 0.6, 4  # of a peak from the mean, and frames between peaks
_TEMPO_PENALTY = 400.0  # per squared log of the ratio of a beat's length to the period
_MIN_STRENGTH = 0.1  # share of the median strength below which the first and last beats are removed


def onset_strength(bands: Float[Tensor, "n g"]) -> np.ndarray:
    """Return the mean increase of the bands at each frame; a sound at the start of a clip is an onset."""
    x = np.pad(bands.float().numpy(), ((0, 0), (2 * _LAG, 0)))
    change = np.maximum(x[:, _LAG:] - x[:, :-_LAG], 0).mean(0)
    change = np.pad(change, (_LAG // 2, _LAG - _LAG // 2))[2 * _LAG :]
    change[-2 * _LAG :] = 0  # not the end of a clip
    return change


def pick_onsets(strength: np.ndarray) -> Float[Tensor, " n"]:
    """Return the times in seconds of the peaks of `strength` that exceed the mean around them."""
    smooth = _smooth(strength, _SMOOTH - 2)
    size = 2 * _MEAN_RADIUS + 1
    mean = np.convolve(np.pad(smooth, _MEAN_RADIUS, mode="edge"), np.full(size, 1 / size), "valid")
    padded = np.pad(smooth, _PEAK_RADIUS)
    maximum = np.max([padded[i : i + len(smooth)] for i in range(2 * _PEAK_RADIUS + 1)], 0)
    peaks: list[int] = []
    for frame in np.flatnonzero((smooth >= maximum) & (smooth > mean + _MIN_DEVIATIONS * smooth.std())).tolist():
        if not peaks or frame - peaks[-1] >= _MIN_DISTANCE:
            peaks.append(frame)
    return _frame_times(peaks)


def track_beats(strength: np.ndarray, tempo: float) -> Float[Tensor, " n"]:
    """Return the times in seconds of the beats that fit `strength` best near `tempo` in beats per minute (Ellis 2007)."""
    smooth = _smooth(strength, _SMOOTH)
    smooth = smooth / max(float(smooth.std()), 1e-6)
    period = 60 * RATE / tempo
    gaps = np.arange(max(1, round(0.7 * period)), round(1.4 * period) + 1)
    cost = _TEMPO_PENALTY * np.log(gaps / period) ** 2
    total, previous = smooth.copy(), np.full(len(smooth), -1)
    for frame in range(gaps[0], len(smooth)):
        steps = gaps[: np.searchsorted(gaps, frame, "right")]
        scores = total[frame - steps] - cost[: len(steps)]
        best = int(scores.argmax())
        if scores[best] > 0:
            total[frame] += scores[best]
            previous[frame] = frame - steps[best]
    start = max(0, len(total) - max(1, int(period)))
    frame, path = start + int(total[start:].argmax()), []
    while frame >= 0:
        path.append(frame)
        frame = int(previous[frame])
    path.reverse()
    strengths = np.array([smooth[max(0, frame - _PEAK_RADIUS) : frame + _PEAK_RADIUS + 1].max() for frame in path])
    audible = np.flatnonzero(strengths >= max(_MIN_STRENGTH * float(np.median(strengths)), 1e-6))
    return _frame_times(path[audible[0] : audible[-1] + 1] if len(audible) else [])


def _smooth(x: np.ndarray, frames: int) -> np.ndarray:
    window = np.hanning(frames + 2)[1:-1]
    return np.convolve(x, window / window.sum(), "same")[: len(x)]


def _frame_times(frames: list[int]) -> Float[Tensor, " n"]:
    """Middles of frames in seconds."""
    return (torch.tensor(frames, dtype=torch.float64) + 0.5) / RATE


@dataclass(frozen=True)
class ChordTimeline:
    """Chord classes (see `ClipLabels`) between consecutive bounds in seconds."""

    bounds: np.ndarray  # [n + 1]
    classes: np.ndarray  # [n]

    @classmethod
    def of(cls, spans: Iterable[Sequence[Any]]) -> "ChordTimeline":
        """Build a timeline from (start, end, name in Harte's syntax) in seconds; gaps are without a chord."""
        bounds, classes = [0.0], []
        for start, end, name in sorted(spans, key=lambda span: span[0]):
            if start > bounds[-1]:
                bounds.append(float(start))
                classes.append(NO_CHORD)
            if end > bounds[-1]:
                bounds.append(float(end))
                classes.append(chord_class(name))
        return cls(np.array(bounds), np.array(classes, dtype=int))

    @classmethod
    def of_frames(cls, classes: Sequence[int], rate: float) -> "ChordTimeline":
        """Build a timeline from one class per frame at `rate` frames per second."""
        frames = np.asarray(classes, dtype=int)
        starts = np.flatnonzero(np.diff(frames, prepend=-1))
        return cls(np.append(starts, len(frames)) / rate, frames[starts])

    def truncate(self, second: float) -> "ChordTimeline":
        """Return the timeline up to `second`."""
        count = int((self.bounds[:-1] < second).sum())
        return ChordTimeline(np.minimum(self.bounds[: count + 1], second), self.classes[:count])

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """Return the classes at times in seconds, no chord outside the bounds."""
        count = len(self.classes)
        index = np.searchsorted(self.bounds, seconds, "right") - 1
        return np.append(self.classes, NO_CHORD)[np.where((index >= 0) & (index < count), index, count)]


def majmin_accuracy(estimated: ChordTimeline, expected: ChordTimeline) -> float:
    """Return the share of the labelled time with the right major-minor class (`majmin` of mir_eval); NaN without any."""
    seconds, classes, correct = _common_segments(estimated, expected)
    known = correct != UNKNOWN
    total = seconds[known].sum()
    return float((seconds * (classes == correct))[known].sum() / total) if total > 0 else math.nan


def chart_iou(estimated: ChordTimeline, expected: ChordTimeline) -> float:
    """Return the intersection over union of two timelines as sets of (time, chord); NaN without chords.

    As in JASCO (arXiv:2406.10970), but for major-minor classes and without the time that has no chord.
    """
    seconds, classes, correct = _common_segments(estimated, expected)
    seconds = seconds * (correct != UNKNOWN)
    both = (seconds * ((classes == correct) & (correct != NO_CHORD))).sum()
    either = (seconds * (correct != NO_CHORD)).sum() + (seconds * (classes != NO_CHORD)).sum() - both
    return float(both / either) if either > 0 else math.nan


def events_f1(estimated: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Return F1 of sorted event times, matched one to one within `tolerance` seconds; 1 if both are empty."""
    if len(estimated) + len(expected) == 0:
        return 1.0
    matched = i = j = 0
    while i < len(estimated) and j < len(expected):  # greedy matching is optimal for sorted times
        gap = estimated[i] - expected[j]
        if abs(gap) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif gap < 0:
            i += 1
        else:
            j += 1
    return 2 * matched / (len(estimated) + len(expected))


def pitch_class_cosine(estimated: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean cosine of one-hot chromas, given as one class per frame, where one is expected; NaN without any."""
    frames = min(len(estimated), len(expected))
    mask = expected != NO_PITCH_CLASS
    if not mask.any():
        return math.nan
    return float(((estimated[:frames] == expected[:frames]) & mask[:frames]).sum() / mask.sum())


def _common_segments(estimated: ChordTimeline, expected: ChordTimeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of every segment of `expected` without a change of either timeline, and the classes of both."""
    end = expected.bounds[-1]
    bounds = np.union1d(expected.bounds, estimated.bounds[(estimated.bounds > expected.bounds[0]) & (estimated.bounds < end)])
    middles = (bounds[1:] + bounds[:-1]) / 2
    return np.diff(bounds), estimated.at(middles), expected.at(middles)
