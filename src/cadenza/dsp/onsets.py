"""Onsets: when something is struck, in each of a few bands of the spectrum."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.dsp.spectra import stft

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
