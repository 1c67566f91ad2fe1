"""Likeness: which clips are the same recording in another encoding, at another gain or rate, or a little shifted."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.core.errors import AudioError
from cadenza.dsp import files
from cadenza.dsp.resample import resample
from cadenza.dsp.sections import ByteRange

NEAR = 5.0  # dB between fingerprints, root mean square, within which two files are listened to
SAME = 0.9  # correlation of the waves from which on they are the same
RATE, SECONDS, SHIFT = 8000, 20.0, 2.0  # how they are compared: at this rate, over so much, shifted by up to so much
FINE = 4  # steps of a shift in a sample
NEIGHBOURS = 8  # of each file that are listened to at most
_ROWS = 1024


def find_near_duplicates(
    places: Sequence[Path | ByteRange], prints: Float[np.ndarray, "b n"], *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, tuple[int, float]]:  # fmt: skip
    """For each file that is the same as an earlier one: the number of that one, and the correlation of their waves."""
    found: dict[int, tuple[int, float]] = {}
    heard = lru_cache(maxsize=32)(lambda number: _wave(places[number]))
    pairs = _near(prints)
    for done, (one, other) in enumerate(pairs):
        progress(done, len(pairs))
        first = found.get(one, (one, 1.0))[0]
        if other in found or first == other:
            continue
        try:
            same = peak_correlation(heard(first), heard(other))
        except AudioError:
            continue  # its own fault says what is wrong with it
        if same >= SAME:
            found[other] = (first, same)
    return found


def peak_correlation(one: Float[Tensor, " n"], other: Float[Tensor, " m"]) -> float:
    """The largest correlation of two waves over shifts of up to two seconds, either way up, where both sound."""
    size = 1 << (len(one) + len(other)).bit_length()
    crossed = torch.fft.rfft(one, size) * torch.fft.rfft(other, size).conj()
    product = torch.fft.irfft(crossed, FINE * size) * FINE  # between the samples too: a shift need not be whole ones
    most = round(SHIFT * RATE) * FINE
    near = torch.cat([product[-most:], product[: most + 1]]).abs()
    best = 0.0
    for place in (int(near.argmax()), most):
        lag = round((place - most) / FINE)
        a, b = one[max(0, lag) :], other[max(0, -lag) :]
        count = min(len(a), len(b))
        power = float(a[:count].norm() * b[:count].norm())
        if power > 0 and 2 * count >= min(len(one), len(other)):
            best = max(best, float(near[place]) / power)
    return min(best, 1.0)


def _near(prints: Float[np.ndarray, "b n"]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of files whose fingerprints are near, the nearest few of each file, in order."""
    x = torch.from_numpy(np.ascontiguousarray(prints, dtype=np.float32))
    scale, pairs = x.shape[1] ** 0.5, set()
    for start in range(0, len(x), _ROWS):
        distances = torch.cdist(x[start : start + _ROWS], x) / scale
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        values, columns = distances.topk(min(NEIGHBOURS, len(x)), largest=False)
        for row, column in (values <= NEAR).nonzero().tolist():
            a, b = start + row, int(columns[row, column])
            pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def _wave(place: Path | ByteRange) -> Float[Tensor, " n"]:
    """The beginning of a file in mono, with its highs raised so that they count."""
    header = files.probe(place)
    samples, rate = files.read(place, 0, max(1, round(SECONDS * header.sample_rate)))
    wave = resample(torch.from_numpy(samples.mean(1)), rate, RATE)
    return torch.cat([wave[:1], wave[1:] - 0.95 * wave[:-1]])
