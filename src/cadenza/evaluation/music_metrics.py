"""Onsets and beats as times, heard in the bands of a clip: nothing is trained, the constants are fixed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.evaluation.estimator_net import BAND_HOP, SAMPLE_RATE
from cadenza.evaluation.labels import NO_CHORD, UNKNOWN, chord_class

RATE = SAMPLE_RATE / BAND_HOP  # band frames per second
_LAG = 2  # frames between which a rise is measured
_SMOOTH = 7  # frames of the smoothed rise
_NEAR, _AROUND = 3, 10  # frames on either side of a peak that are below it, and whose mean it stands out from
_ABOVE, _APART = 0.6, 4  # by how many deviations it stands out, and how many frames after the last
_STEADY = 400.0  # how dearly a beat pays for being early or late, per squared log of the ratio
_FAINT = 0.1  # share of the usual strength below which the first and last beats are none


def onset_strength(bands: Float[Tensor, "n g"]) -> np.ndarray:
    """How much louder the bands become at each frame; a clip that begins with a sound begins with an onset."""
    x = np.pad(bands.float().numpy(), ((0, 0), (2 * _LAG, 0)))
    change = np.maximum(x[:, _LAG:] - x[:, :-_LAG], 0).mean(0)
    change = np.pad(change, (_LAG // 2, _LAG - _LAG // 2))[2 * _LAG :]
    change[-2 * _LAG :] = 0  # the cut at a clip's end is no onset
    return change


def pick_onsets(strength: np.ndarray) -> Float[Tensor, " n"]:
    """The times in seconds of peaks in `rise` that stand out from what is around them."""
    smooth = _smoothed(strength, _SMOOTH - 2)
    frames = len(smooth)
    around = np.convolve(np.pad(smooth, _AROUND, mode="edge"), np.full(2 * _AROUND + 1, 1 / (2 * _AROUND + 1)), "valid")
    beside = np.pad(smooth, _NEAR)
    highest = np.max([beside[i : i + frames] for i in range(2 * _NEAR + 1)], 0)
    found: list[int] = []
    for frame in np.flatnonzero((smooth >= highest) & (smooth > around + _ABOVE * smooth.std())).tolist():
        if not found or frame - found[-1] >= _APART:
            found.append(frame)
    return _seconds(found)


def track_beats(strength: np.ndarray, tempo: float) -> Float[Tensor, " n"]:
    """The times in seconds of the beats at about this tempo that fall best on rises (Ellis 2007, by dynamic programming)."""
    smooth = _smoothed(strength, _SMOOTH)
    smooth = smooth / max(float(smooth.std()), 1e-6)
    period = 60 * RATE / tempo
    gaps = np.arange(max(1, round(0.7 * period)), round(1.4 * period) + 1)
    cost = _STEADY * np.log(gaps / period) ** 2
    total, before = smooth.copy(), np.full(len(smooth), -1)
    for frame in range(gaps[0], len(smooth)):
        reach = gaps[: np.searchsorted(gaps, frame, "right")]
        scores = total[frame - reach] - cost[: len(reach)]
        best = int(scores.argmax())
        if scores[best] > 0:
            total[frame] += scores[best]
            before[frame] = frame - reach[best]
    start = max(0, len(total) - max(1, int(period)))
    frame, path = start + int(total[start:].argmax()), []
    while frame >= 0:
        path.append(frame)
        frame = int(before[frame])
    return _seconds(_sounding(path[::-1], smooth))


def _sounding(path: list[int], strength: np.ndarray) -> list[int]:
    """A path without the beats before the music begins and after it has ended."""
    near = np.array([strength[max(0, frame - _NEAR) : frame + _NEAR + 1].max() for frame in path])
    there = np.flatnonzero(near >= max(_FAINT * float(np.median(near)), 1e-6))
    return path[there[0] : there[-1] + 1] if len(there) else []


def _smoothed(x: np.ndarray, frames: int) -> np.ndarray:
    window = np.hanning(frames + 2)[1:-1]
    return np.convolve(x, window / window.sum(), "same")[: len(x)]


def _seconds(frames: list[int]) -> Float[Tensor, " n"]:
    """The middles of frames."""
    return (torch.tensor(frames, dtype=torch.float64) + 0.5) / RATE


BEAT, ONSET = 0.07, 0.05  # seconds by which a beat, an onset may be early or late (as in MIREX)


@dataclass(frozen=True)
class ChordTimeline:
    """Chord classes, as in `Truth`, between one bound in seconds and the next."""

    bounds: np.ndarray  # [n + 1]
    classes: np.ndarray  # [n]

    @classmethod
    def of(cls, spans: Iterable[Sequence[Any]]) -> "ChordTimeline":
        """The chart of (start, end, name in Harte's syntax); between spans no chord sounds."""
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
        """The chart of one class a frame."""
        found = np.asarray(classes, dtype=int)
        starts = np.flatnonzero(np.diff(found, prepend=-1))
        return cls(np.append(starts, len(found)) / rate, found[starts])

    def truncate(self, second: float) -> "ChordTimeline":
        """The same chart without what comes later."""
        kept = int((self.bounds[:-1] < second).sum())
        return ChordTimeline(np.minimum(self.bounds[: kept + 1], second), self.classes[:kept])

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """The classes at some times, no chord outside the chart."""
        outside = len(self.classes)
        place = np.searchsorted(self.bounds, seconds, "right") - 1
        return np.append(self.classes, NO_CHORD)[np.where((place >= 0) & (place < outside), place, outside)]


def majmin_accuracy(heard: ChordTimeline, wanted: ChordTimeline) -> float:
    """The share of time with the right major-minor class, of that whose class is known (`majmin` of mir_eval)."""
    seconds, is_, ought = _together(heard, wanted)
    known = ought != UNKNOWN
    return float((seconds * (is_ == ought))[known].sum() / seconds[known].sum()) if seconds[known].sum() > 0 else float("nan")


def chart_iou(heard: ChordTimeline, wanted: ChordTimeline) -> float:
    """The seconds in which both have the same chord over those that either covers with its own (time, chord).

    As in JASCO (arXiv:2406.10970), but for major-minor classes; no chord is nothing to cover.
    """
    seconds, is_, ought = _together(heard, wanted)
    seconds = seconds * (ought != UNKNOWN)
    both = (seconds * ((is_ == ought) & (ought != NO_CHORD))).sum()
    either = (seconds * (ought != NO_CHORD)).sum() + (seconds * (is_ != NO_CHORD)).sum() - both
    return float(both / either) if either > 0 else float("nan")


def events_f1(heard: np.ndarray, wanted: np.ndarray, tolerance: float) -> float:
    """F1 of event times, each matched with one other at most `tolerance` seconds away; 1 where none is wanted or heard."""
    if len(heard) + len(wanted) == 0:
        return 1.0
    matched = i = j = 0
    while i < len(heard) and j < len(wanted):  # for times in order, the first match that comes is as good as any
        gap = heard[i] - wanted[j]
        if abs(gap) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif gap < 0:
            i += 1
        else:
            j += 1
    return 2 * matched / (len(heard) + len(wanted))


def pitch_class_cosine(heard: np.ndarray, wanted: np.ndarray, silent: int) -> float:
    """The mean cosine between one-hot chromas, given as classes a frame, where something was wanted; NaN where nothing was."""
    frames = min(len(heard), len(wanted))
    there = wanted != silent
    if not there.any():
        return float("nan")
    return float(((heard[:frames] == wanted[:frames]) & there[:frames]).sum() / there.sum())


def _together(heard: ChordTimeline, wanted: ChordTimeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The seconds of every stretch in which neither chart changes within the wanted one, and the classes of both."""
    end = wanted.bounds[-1]
    bounds = np.union1d(wanted.bounds, heard.bounds[(heard.bounds > wanted.bounds[0]) & (heard.bounds < end)])
    middles = (bounds[1:] + bounds[:-1]) / 2
    return np.diff(bounds), heard.at(middles), wanted.at(middles)
