"""Pitch of a single voice (YIN) and onset detection in frequency bands."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.dsp.spectral import stft

_PITCH_WINDOW = 0.04  # seconds compared with themselves one period later
_MAX_DIFFERENCE = 0.15  # of the periods of a voiced frame: the absolute threshold of YIN
_MIN_LEVEL = 0.02  # of the loudest frame; quieter frames are unvoiced

_ONSET_HOP, _ONSET_WINDOW = 0.01, 0.032  # seconds
_NEIGHBORHOOD = 0.1  # seconds on each side that an onset must exceed
_MIN_INTERVAL = 0.05  # seconds between two onsets of a band
_COMPRESSION_FLOOR = 1e-2  # of the loudest bin; quieter bins count as 0


def estimate_pitch(
    wave: Float[Tensor, " t"], sample_rate: int, frame_rate: float, *, low: float = 65.0, high: float = 1000.0
) -> Float[Tensor, " f"]:
    """Estimate the MIDI pitch at the middle of each frame; NaN for unvoiced frames.

    YIN (de Cheveigné and Kawahara 2002), equations 6 to 8, steps 4 and 5. `low` and `high` bound the pitch in Hz.
    """
    frames = max(1, round(len(wave) / sample_rate * frame_rate))
    size, longest = round(_PITCH_WINDOW * sample_rate), round(sample_rate / low)
    shortest = max(2, int(sample_rate / high))
    span = size + longest + 1
    middle = ((torch.arange(frames) + 0.5) * sample_rate / frame_rate).long()
    padded = F.pad(wave.float(), (span // 2, span))
    parts = padded[middle[:, None] + torch.arange(span)]
    energy = F.pad(parts.square().cumsum(1), (1, 0))
    lags = torch.arange(longest + 1)
    power = energy[:, lags + size] - energy[:, lags]
    n = 1 << (span + size).bit_length()
    spectrum = torch.fft.rfft(parts, n) * torch.fft.rfft(parts[:, :size], n).conj()
    autocorrelation = torch.fft.irfft(spectrum, n)[:, : longest + 1]
    difference = (power[:, :1] + power - 2 * autocorrelation).clamp(min=0)
    mean = difference.cumsum(1)[:, 1:] / lags[1:]
    normalized = torch.cat([torch.ones(frames, 1), difference[:, 1:] / mean.clamp(min=1e-12)], 1)
    normalized[:, :shortest] = 1.0
    inner = normalized[:, 1:-1]
    dips = (inner <= normalized[:, :-2]) & (inner < normalized[:, 2:])
    deep = dips & (inner < _MAX_DIFFERENCE)
    lag = deep.float().argmax(1) + 1  # the first deep dip is the shortest period
    rows = torch.arange(frames)
    left, center, right = normalized[rows, lag - 1], normalized[rows, lag], normalized[rows, lag + 1]
    curvature = (left + right - 2 * center).clamp(min=1e-9)
    period = (lag + 0.5 * (left - right) / curvature) / sample_rate
    voiced = deep.any(1) & (power[:, 0] > _MIN_LEVEL**2 * power[:, 0].max().clamp(min=1e-9))
    return torch.where(voiced, 69 - 12 * (440 * period).log2(), torch.nan)


def segment_notes(pitch: Float[Tensor, " f"], frame_rate: float, *, shortest: float = 0.06) -> list[tuple[float, float, int]]:
    """Return runs of one semitone as (start, end, MIDI pitch), times in seconds; drop those below `shortest` seconds."""
    steps = [None if math.isnan(value) else round(value) for value in pitch.tolist()]
    notes, first = [], 0
    for step, run in groupby(steps):
        end = first + len(list(run))
        if step is not None and (end - first) / frame_rate >= shortest:
            notes.append((first / frame_rate, end / frame_rate, step))
        first = end
    return notes


def detect_onsets(
    wave: Float[Tensor, " t"], sample_rate: int, bands: Sequence[tuple[float, float]], *, rise: float = 0.25
) -> list[list[float]]:
    """Return the onset times in seconds of each band, given as (low, high) in Hz.

    Spectral flux of compressed magnitudes with an adaptive threshold (Böck, Krebs and Schedl 2012, sections 2.2 and 2.3).
    `rise` is the increase of a band's mean level at an onset, where 1 is the level of the loudest bin.
    """
    hop, size = round(_ONSET_HOP * sample_rate), round(_ONSET_WINDOW * sample_rate)
    wave = F.pad(wave, (0, max(0, size + 1 - len(wave))))
    magnitude = stft(F.pad(wave, (size, 0)), size, hop=hop).abs()[:, : -(size // hop)]  # a cut is not an onset
    level = torch.log1p(magnitude / (_COMPRESSION_FLOOR * magnitude.max()).clamp(min=1e-9)) / torch.log1p(
        torch.tensor(1 / _COMPRESSION_FLOOR)
    )
    hertz = torch.linspace(0, sample_rate / 2, level.shape[0])
    onsets = []
    for low, high in bands:
        inside = (hertz >= low) & (hertz < high)
        energy = level[inside].mean(0)
        flux = F.pad((energy[2:] - energy[:-2]).clamp(min=0), (2, 0))
        onsets.append([max(0.0, frame * _ONSET_HOP - _ONSET_WINDOW) for frame in _peaks(flux, rise)])
    return onsets


def _peaks(flux: Float[Tensor, " f"], rise: float) -> list[int]:
    """Return frames that are local maxima, exceed the local mean, and are not too close to the previous one."""
    side, interval = round(_NEIGHBORHOOD / _ONSET_HOP), round(_MIN_INTERVAL / _ONSET_HOP)
    highest = F.max_pool1d(flux[None], 2 * interval + 1, 1, interval)[0]
    mean = F.avg_pool1d(flux[None], 2 * side + 1, 1, side)[0]
    peaks: list[int] = []
    for peak in ((flux == highest) & (flux > mean + rise / 2)).nonzero().flatten().tolist():
        if not peaks or (peak - peaks[-1]) * _ONSET_HOP >= _MIN_INTERVAL:
            peaks.append(peak)
    return peaks
