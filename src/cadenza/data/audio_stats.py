"""Likeness: which clips are the same recording in another encoding, at another gain or rate, or a little shifted."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.core.errors import AudioError
from cadenza.dsp import audio_io
from cadenza.dsp.audio import resample
from cadenza.dsp.byte_range import ByteRange
from cadenza.dsp.loudness import loudness

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
    header = audio_io.probe(place)
    samples, rate = audio_io.read(place, 0, max(1, round(SECONDS * header.sample_rate)))
    wave = resample(torch.from_numpy(samples.mean(1)), rate, RATE)
    return torch.cat([wave[:1], wave[1:] - 0.95 * wave[:-1]])


BLOCK = 30.0  # seconds held at a time
WINDOW = 0.1  # seconds over which levels are taken
FLOOR = -60.0  # dBFS below which a window is silent
FLAT, FULL = 2e-4, 0.998  # clipped is: this near the top of its block, or over this
EDGE, LEAST = 3.0, 5e-4  # the step to a clipped crest: so many times that of a parabola as long, and of the top at least
LOW, BANDS = 60.0, 70  # Hz, and semitones from there on, of the fingerprint
RANGE = 50.0  # dB below the loudest band that count


@dataclass(frozen=True)
class AudioStats:
    """One file: levels are of full scale 1, `print` is alike for files that sound alike."""

    sample_rate: int
    channels: int
    seconds: float
    digest: str  # sha256 of the file's bytes
    peak: float
    loudest: float  # dBFS of the loudest tenth of a second
    silent: float  # fraction of the time that is below -60 dBFS
    lufs: float
    offset: float  # the mean of the channel where it is largest
    clipped: float  # fraction of samples
    crests: int  # stretches of clipped samples
    silent_channels: int  # channels without sound, while another has some
    correlation: float  # of left and right, 1 in mono
    finite: bool
    fingerprint: Float[np.ndarray, " n"]


def analyze_file(place: Path | ByteRange) -> AudioStats:
    """What a file is like; AudioError where it cannot be read, CutShort where it ends too early."""
    header = audio_io.probe(place)
    tally = _Tally(header.sample_rate, header.channels)
    for samples in audio_io.iter_blocks(place, max(1, round(BLOCK * header.sample_rate))):
        tally.add(samples)
    return tally.result(file_sha256(place))


def file_sha256(place: Path | ByteRange) -> str:
    """A hash of a file's bytes."""
    made = hashlib.sha256()
    with place.open() if isinstance(place, ByteRange) else open(place, "rb") as file:
        while piece := file.read(1 << 20):
            made.update(piece)
    return made.hexdigest()


class _Tally:
    """Sums over the blocks of one file."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.rate, self.channels, self.frames, self.finite = sample_rate, channels, 0, True
        self.sums, self.squares, self.peaks = (np.zeros(channels) for _ in range(3))
        self.cross, self.clipped, self.crests = 0.0, np.zeros(channels), np.zeros(channels)
        self.levels: list[np.ndarray] = []
        self.powers: list[tuple[int, float]] = []
        self.bands = np.zeros((2, BANDS))  # sum and sum of squares over frames
        self.heard = 0

    def add(self, samples: Float[np.ndarray, "t c"]) -> None:
        if not np.isfinite(samples).all():
            self.finite = False
            samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        self.frames += len(samples)
        self.sums += samples.sum(0, dtype=np.float64)
        self.squares += np.square(samples, dtype=np.float64).sum(0)
        self.peaks = np.maximum(self.peaks, np.abs(samples).max(0))
        if self.channels == 2:
            self.cross += float(np.dot(samples[:, 0].astype(np.float64), samples[:, 1]))
        for channel in range(self.channels):
            count, crests = count_clipping(samples[:, channel])
            self.clipped[channel] += count
            self.crests[channel] += crests
        self.levels.append(_levels(samples, max(1, round(WINDOW * self.rate))))
        lufs = loudness(torch.from_numpy(samples.T.copy()), self.rate)
        if math.isfinite(lufs):
            self.powers.append((len(samples), 10 ** (lufs / 10)))
        for levels in _semitones(samples.mean(1), self.rate):
            self.bands += np.stack([levels, levels**2])
            self.heard += 1

    def result(self, digest: str) -> AudioStats:
        levels = np.concatenate(self.levels)
        power = np.sqrt(self.squares.prod()) if self.channels == 2 else 0.0
        power_of_loud = sum(n * p for n, p in self.powers) / max(1, sum(n for n, _ in self.powers))
        top = float(self.peaks.max())
        worst = int(self.clipped.argmax())
        return AudioStats(
            sample_rate=self.rate,
            channels=self.channels,
            seconds=self.frames / self.rate,
            digest=digest,
            peak=top,
            loudest=float(levels.max()),
            silent=float((levels < FLOOR).mean()),
            lufs=10 * math.log10(power_of_loud) if self.powers else -math.inf,
            offset=float(np.abs(self.sums).max() / self.frames),
            clipped=float(self.clipped[worst] / self.frames),
            crests=int(self.crests[worst]),
            silent_channels=int((self.peaks < 1e-3 * top).sum()) if top else 0,
            correlation=float(self.cross / power) if power > 0 else 1.0,
            finite=self.finite,
            fingerprint=self._print(),
        )

    def _print(self) -> Float[np.ndarray, " n"]:
        """Mean and spread over time of the level in each semitone, whatever the gain; zeros for silence."""
        if not self.heard:
            return np.zeros(2 * BANDS, np.float32)
        mean, square = self.bands / self.heard
        spread = np.sqrt(np.maximum(0, square - mean**2))
        return np.concatenate([mean - mean.mean(), spread]).astype(np.float32)


def count_clipping(x: Float[np.ndarray, " t"]) -> tuple[int, int]:
    """Samples in flat tops that a wave runs into with a step, and how many such tops there are.

    Below full scale the wave must also have been on its way there, as a cut crest is and a square wave is not.
    """
    top = float(np.abs(x).max(initial=0.0))
    if top < 0.1 or len(x) < 8:
        return 0, 0
    count = crests = 0
    for side in (x, -x):
        level = min(top * (1 - FLAT), FULL)
        flat = np.flatnonzero(np.diff(np.concatenate([[0], (side >= level).astype(np.int8), [0]])))
        starts, ends = flat[::2], flat[1::2]
        keep = (ends - starts >= 2) & (starts >= 2) & (ends <= len(x) - 2)
        starts, ends = starts[keep], ends[keep]
        before, after = side[starts] - side[starts - 1], side[ends - 1] - side[ends]
        long = ends - starts
        round_crest = (1 - level / top) * 4 * (long + 1) / long**2
        cut = np.maximum(before, after) >= top * np.maximum(EDGE * round_crest, LEAST)
        if top < FULL:
            coming, going = side[starts - 1] - side[starts - 2], side[ends] - side[ends + 1]
            cut &= ((before < top / 2) & (coming > before / 5)) | ((after < top / 2) & (going > after / 5))
        count += int((ends - starts)[cut].sum())
        crests += int(cut.sum())
    return count, crests


def _levels(samples: Float[np.ndarray, "t c"], window: int) -> Float[np.ndarray, " n"]:
    """Level in dBFS of each window, in the loudest channel; a rest of less than half a window is left out."""
    count = max(1, round(len(samples) / window))
    room = np.zeros((count * window, samples.shape[1]), np.float64)
    part = samples[: len(room)]
    room[: len(part)] = part
    means = np.square(room).reshape(count, window, -1).sum(1).max(-1) / min(window, len(samples))
    return 10 * np.log10(np.maximum(means, 1e-20))


def _semitones(mono: Float[np.ndarray, " t"], rate: int) -> Iterator[Float[np.ndarray, " n"]]:
    """Level in dB in each semitone, in every quarter of a second that is not silent."""
    size, hop = max(8, rate // 2), max(4, rate // 4)
    mono = np.pad(mono, (0, max(0, size - len(mono))))
    window = np.hanning(size).astype(np.float32)
    bins = np.floor(12 * np.log2(np.maximum(np.arange(size // 2 + 1) * rate / size, 1e-3) / LOW) + 0.5).astype(int)
    used = (bins >= 0) & (bins < BANDS)
    for start in range(0, len(mono) - size + 1, hop):
        power = np.abs(np.fft.rfft(mono[start : start + size] * window)) ** 2
        levels = 10 * np.log10(np.bincount(bins[used], power[used], BANDS) / (size * size / 16) + 1e-12)
        if levels.max() > FLOOR - 10:
            yield np.maximum(levels, levels.max() - RANGE)
