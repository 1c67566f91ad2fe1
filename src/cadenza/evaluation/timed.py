"""What is heard over time against what was wanted over time: chords by their seconds, events within a tolerance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cadenza.evaluation.labels import NO_CHORD, UNKNOWN, chord_class

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
