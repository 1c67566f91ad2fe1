"""Pitch: the fundamental of one voice, such as humming, at each frame."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.dsp.spectral import stft

WINDOW = 0.04  # seconds compared with themselves a period later
_DIP = 0.15  # how unlike the periods of a voiced frame may be
_QUIET = 0.02  # of the loudest frame: below this, nothing sounds


def estimate_pitch(
    wave: Float[Tensor, " t"], sample_rate: int, frame_rate: float, *, low: float = 65.0, high: float = 1000.0
) -> Float[Tensor, " f"]:
    """MIDI pitch in the middle of each frame, NaN where no voice sounds.

    YIN (de Cheveigne and Kawahara 2002), equations 6 to 8 and its steps 4 and 5; `low` and `high` are in Hz.
    """
    frames = max(1, round(len(wave) / sample_rate * frame_rate))
    size, longest = round(WINDOW * sample_rate), round(sample_rate / low)
    shortest = max(2, int(sample_rate / high))
    reach = size + longest + 1
    middle = ((torch.arange(frames) + 0.5) * sample_rate / frame_rate).long()
    padded = F.pad(wave.float(), (reach // 2, reach))
    parts = padded[middle[:, None] + torch.arange(reach)]
    energy = parts.square().cumsum(1)
    energy = torch.cat([torch.zeros(frames, 1), energy], 1)
    lags = torch.arange(longest + 1)
    power = energy[:, lags + size] - energy[:, lags]
    n = 1 << (reach + size).bit_length()
    spectrum = torch.fft.rfft(parts, n) * torch.fft.rfft(parts[:, :size], n).conj()
    same = torch.fft.irfft(spectrum, n)[:, : longest + 1]
    difference = (power[:, :1] + power - 2 * same).clamp(min=0)
    mean = difference.cumsum(1)[:, 1:] / lags[1:]
    unlike = torch.cat([torch.ones(frames, 1), difference[:, 1:] / mean.clamp(min=1e-12)], 1)
    unlike[:, :shortest] = 1.0
    inner = unlike[:, 1:-1]
    dips = (inner <= unlike[:, :-2]) & (inner < unlike[:, 2:])
    deep = dips & (inner < _DIP)
    first = deep.float().argmax(1)  # the first deep dip, the least period
    lag = first + 1
    here = torch.arange(frames)
    left, centre, right = unlike[here, lag - 1], unlike[here, lag], unlike[here, lag + 1]
    bend = (left + right - 2 * centre).clamp(min=1e-9)
    period = (lag + 0.5 * (left - right) / bend) / sample_rate
    loud = power[:, 0] > _QUIET**2 * power[:, 0].max().clamp(min=1e-9)
    voiced = deep.any(1) & loud
    return torch.where(voiced, 69 - 12 * (440 * period).log2(), torch.nan)


def segment_notes(pitch: Float[Tensor, " f"], frame_rate: float, *, shortest: float = 0.06) -> list[tuple[float, float, int]]:
    """Runs of one semitone as (start, end, MIDI pitch) in seconds, without those of less than `shortest` seconds."""
    steps = [None if math.isnan(value) else round(value) for value in pitch.tolist()]
    found, first = [], 0
    for at in range(1, len(steps) + 1):
        if at == len(steps) or steps[at] != steps[first]:
            step = steps[first]
            if step is not None and (at - first) / frame_rate >= shortest:
                found.append((first / frame_rate, at / frame_rate, step))
            first = at
    return found


HOP, WINDOW = 0.01, 0.032  # seconds
_AROUND = 0.1  # seconds on each side that an onset stands out from
_LEAST = 0.05  # seconds between two onsets of a band
_FLOOR = 1e-2  # of the loudest bin: what is quieter does not count


def detect_onsets(
    wave: Float[Tensor, " t"], sample_rate: int, bands: Sequence[tuple[float, float]], *, rise: float = 0.25
) -> list[list[float]]:
    """Of each band, from low to high in Hz, the seconds at which it grows louder at once.

    Spectral flux of compressed magnitudes with a threshold that follows it (Boeck, Krebs and Schedl 2012, sections 2.2
    and 2.3); `rise` is what a strike adds to a band's mean level, where 1 is the level of the loudest bin.
    """
    hop, size = round(HOP * sample_rate), round(WINDOW * sample_rate)
    if len(wave) <= size:
        wave = F.pad(wave, (0, size + 1 - len(wave)))
    magnitude = stft(F.pad(wave, (size, 0)), size, hop=hop).abs()[:, : -(size // hop)]  # nothing begins at a cut
    level = torch.log1p(magnitude / (_FLOOR * magnitude.max()).clamp(min=1e-9)) / torch.log1p(torch.tensor(1 / _FLOOR))
    hertz = torch.linspace(0, sample_rate / 2, level.shape[0])
    found = []
    for low, high in bands:
        inside = (hertz >= low) & (hertz < high)
        energy = level[inside].mean(0)
        grown = F.pad((energy[2:] - energy[:-2]).clamp(min=0), (2, 0))
        found.append([max(0.0, frame * HOP - WINDOW) for frame in _peaks(grown, rise)])
    return found


def _peaks(grown: Float[Tensor, " f"], rise: float) -> list[int]:
    """Frames that are the largest around, stand out from the mean around, and are not too near the one before."""
    reach = round(_AROUND / HOP)
    highest = F.max_pool1d(grown[None], 2 * round(_LEAST / HOP) + 1, 1, round(_LEAST / HOP))[0]
    mean = F.avg_pool1d(grown[None], 2 * reach + 1, 1, reach)[0]
    peaks = ((grown == highest) & (grown > mean + rise / 2)).nonzero().flatten().tolist()
    kept: list[int] = []
    for peak in peaks:
        if not kept or (peak - kept[-1]) * HOP >= _LEAST:
            kept.append(peak)
    return kept
