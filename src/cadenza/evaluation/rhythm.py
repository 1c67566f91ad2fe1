"""Onsets and beats as times, heard in the bands of a clip: nothing is trained, the constants are fixed."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.evaluation.features import BAND_HOP, SAMPLE_RATE

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
