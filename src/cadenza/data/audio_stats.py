"""Audio statistics of one file (levels, clipping, fingerprint), and near duplicates among many files."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.core.errors import AudioError
from cadenza.dsp import audio_io
from cadenza.dsp.audio import resample
from cadenza.dsp.byte_range import ByteRange
from cadenza.dsp.loudness import loudness

BLOCK_SECONDS = 30.0  # audio in memory at a time
WINDOW_SECONDS = 0.1  # window of levels
SILENCE_DBFS = -60.0  # windows below this level are silent
FLAT_TOP, FULL_SCALE = 2e-4, 0.998  # clipped samples: within this fraction of their block's peak, or above this level
STEP_RATIO, MIN_STEP = 3.0, 5e-4  # step to a clipped crest: times that of an equally long parabola; fraction of the peak
LOWEST_HZ, NUM_SEMITONES = 60.0, 70  # range of the fingerprint
RANGE_DB = 50.0  # the fingerprint ignores bands this far below the loudest
MAX_DISTANCE_DB = 5.0  # root mean square between fingerprints of files whose waves are compared
MIN_CORRELATION = 0.9  # of the waves of near duplicates
COMPARE_RATE, COMPARE_SECONDS, MAX_SHIFT_SECONDS = 8000, 20.0, 2.0  # how waves are compared
STEPS_PER_SAMPLE = 4  # resolution of a shift
MAX_NEIGHBORS = 8  # files compared with each file
_ROWS = 1024  # fingerprints whose distances are computed at a time


@dataclass(frozen=True)
class AudioStats:
    """Statistics of one file at full scale 1; files that sound alike have similar fingerprints."""

    sample_rate: int
    channels: int
    seconds: float
    digest: str  # sha256 of the file's bytes
    peak: float
    loudest: float  # dBFS of the loudest window
    silent: float  # fraction of silent windows
    lufs: float
    offset: float  # largest mean of a channel
    clipped: float  # fraction of samples
    crests: int  # runs of clipped samples
    silent_channels: int  # silent channels, if another one is not
    correlation: float  # of left and right; 1 for mono
    finite: bool
    fingerprint: Float[np.ndarray, " n"]


def analyze_file(path: Path | ByteRange) -> AudioStats:
    """Return the statistics of a file; raise AudioError if it cannot be read, TruncatedAudioError if it is too short."""
    header = audio_io.probe(path)
    rate, finite, levels, peaks, blocks = header.sample_rate, True, [], np.zeros(header.channels), []
    for samples in audio_io.iter_blocks(path, max(1, round(BLOCK_SECONDS * rate))):
        finite &= bool(np.isfinite(samples).all())
        block = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        levels.append(_levels(block, max(1, round(WINDOW_SECONDS * rate))))
        peaks = np.maximum(peaks, np.abs(block).max(0))
        blocks.append(_sums(block, rate))
    sums: dict[str, Any] = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    all_levels, peak = np.concatenate(levels), float(peaks.max())
    stereo_power = np.sqrt(sums["squares"].prod()) if header.channels == 2 else 0.0
    clipped, crests = max(sums["clipping"].tolist())
    with path.open() if isinstance(path, ByteRange) else open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return AudioStats(
        sample_rate=rate,
        channels=header.channels,
        seconds=sums["frames"] / rate,
        digest=digest,
        peak=peak,
        loudest=float(all_levels.max()),
        silent=float((all_levels < SILENCE_DBFS).mean()),
        lufs=10 * math.log10(sums["power"] / sums["loud_frames"]) if sums["loud_frames"] else -math.inf,
        offset=float(np.abs(sums["samples"]).max() / sums["frames"]),
        clipped=clipped / sums["frames"],
        crests=crests,
        silent_channels=int((peaks < 1e-3 * peak).sum()) if peak else 0,
        correlation=float(sums["products"] / stereo_power) if stereo_power > 0 else 1.0,
        finite=finite,
        fingerprint=_fingerprint(sums["bands"], sums["spectra"]),
    )


def _sums(samples: Float[np.ndarray, "t c"], rate: int) -> dict[str, Any]:
    """Return the statistics of a block that add up over the blocks of a file."""
    lufs = loudness(torch.from_numpy(samples.T.copy()), rate)
    loud_frames = len(samples) if math.isfinite(lufs) else 0
    spectra = list(_semitone_levels(samples.mean(1), rate))
    bands = sum((np.stack([levels, levels**2]) for levels in spectra), np.zeros((2, NUM_SEMITONES)))
    return {
        "frames": len(samples),
        "samples": samples.sum(0, dtype=np.float64),
        "squares": np.square(samples, dtype=np.float64).sum(0),
        "products": float(np.dot(samples[:, 0].astype(np.float64), samples[:, 1])) if samples.shape[1] == 2 else 0.0,
        "clipping": np.array([count_clipping(channel) for channel in samples.T]),  # [c, 2]
        "loud_frames": loud_frames,
        "power": loud_frames * 10 ** (lufs / 10),
        "bands": bands,  # of the levels in semitones, and of their squares
        "spectra": len(spectra),
    }


def _fingerprint(bands: Float[np.ndarray, "2 n"], spectra: int) -> Float[np.ndarray, " m"]:
    """Return mean and standard deviation over time of the level in each semitone, independent of gain."""
    mean, square = bands / max(1, spectra)
    deviation = np.sqrt(np.maximum(0, square - mean**2))
    return np.concatenate([mean - mean.mean(), deviation]).astype(np.float32)


def count_clipping(x: Float[np.ndarray, " t"]) -> tuple[int, int]:
    """Return the number of clipped samples and of clipped crests: flat tops that the wave enters with a step.

    Below full scale the wave must also rise towards the step, as a cut crest does and a square wave does not.
    """
    peak = float(np.abs(x).max(initial=0.0))
    if peak < 0.1 or len(x) < 8:
        return 0, 0
    count = crests = 0
    level = min(peak * (1 - FLAT_TOP), FULL_SCALE)
    for side in (x, -x):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], (side >= level).astype(np.int8), [0]])))
        starts, ends = edges[::2], edges[1::2]
        inner = (ends - starts >= 2) & (starts >= 2) & (ends <= len(x) - 2)
        starts, ends = starts[inner], ends[inner]
        before, after = side[starts] - side[starts - 1], side[ends - 1] - side[ends]
        length = ends - starts
        parabola_step = (1 - level / peak) * 4 * (length + 1) / length**2
        is_cut = np.maximum(before, after) >= peak * np.maximum(STEP_RATIO * parabola_step, MIN_STEP)
        if peak < FULL_SCALE:
            rise, fall = side[starts - 1] - side[starts - 2], side[ends] - side[ends + 1]
            is_cut &= ((before < peak / 2) & (rise > before / 5)) | ((after < peak / 2) & (fall > after / 5))
        count += int(length[is_cut].sum())
        crests += int(is_cut.sum())
    return count, crests


def _levels(samples: Float[np.ndarray, "t c"], window: int) -> Float[np.ndarray, " n"]:
    """Return the dBFS of each window in the loudest channel; a remainder under half a window is dropped."""
    count = max(1, round(len(samples) / window))
    padded = np.zeros((count * window, samples.shape[1]), np.float64)
    samples = samples[: len(padded)]
    padded[: len(samples)] = samples
    means = np.square(padded).reshape(count, window, -1).sum(1).max(-1) / min(window, len(samples))
    return 10 * np.log10(np.maximum(means, 1e-20))


def _semitone_levels(mono: Float[np.ndarray, " t"], rate: int) -> Iterator[Float[np.ndarray, " n"]]:
    """Yield the dB of each semitone, for every quarter of a second that is not silent."""
    size, hop = max(8, rate // 2), max(4, rate // 4)
    mono = np.pad(mono, (0, max(0, size - len(mono))))
    window = np.hanning(size).astype(np.float32)
    bins = np.floor(12 * np.log2(np.maximum(np.arange(size // 2 + 1) * rate / size, 1e-3) / LOWEST_HZ) + 0.5).astype(int)
    used = (bins >= 0) & (bins < NUM_SEMITONES)
    for start in range(0, len(mono) - size + 1, hop):
        power = np.abs(np.fft.rfft(mono[start : start + size] * window)) ** 2
        levels = 10 * np.log10(np.bincount(bins[used], power[used], NUM_SEMITONES) / (size * size / 16) + 1e-12)
        if levels.max() > SILENCE_DBFS - 10:
            yield np.maximum(levels, levels.max() - RANGE_DB)


def find_near_duplicates(
    paths: Sequence[Path | ByteRange], fingerprints: Float[np.ndarray, "b n"], *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, tuple[int, float]]:  # fmt: skip
    """Return, for each file that repeats an earlier one, the earlier file's index and the correlation of the waves.

    Finds other encodings, gains, sample rates, polarities and small shifts of a recording.
    """
    duplicates: dict[int, tuple[int, float]] = {}
    load = lru_cache(maxsize=32)(lambda index: _load_wave(paths[index]))
    pairs = _similar_pairs(fingerprints)
    for done, (earlier, later) in enumerate(pairs):
        progress(done, len(pairs))
        first = duplicates.get(earlier, (earlier, 1.0))[0]
        if later in duplicates or first == later:
            continue
        try:
            correlation = peak_correlation(load(first), load(later))
        except AudioError:
            continue  # reported when the file itself is analyzed
        if correlation >= MIN_CORRELATION:
            duplicates[later] = (first, correlation)
    return duplicates


def peak_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> float:
    """Return the largest correlation of two waves over shifts of up to two seconds, in either polarity."""
    size = 1 << (len(x) + len(y)).bit_length()
    spectrum = torch.fft.rfft(x, size) * torch.fft.rfft(y, size).conj()
    product = torch.fft.irfft(spectrum, STEPS_PER_SAMPLE * size) * STEPS_PER_SAMPLE  # shifts may be fractions of a sample
    max_shift = round(MAX_SHIFT_SECONDS * COMPARE_RATE) * STEPS_PER_SAMPLE
    near = torch.cat([product[-max_shift:], product[: max_shift + 1]]).abs()
    best = 0.0
    for index in (int(near.argmax()), max_shift):
        lag = round((index - max_shift) / STEPS_PER_SAMPLE)
        a, b = x[max(0, lag) :], y[max(0, -lag) :]
        count = min(len(a), len(b))
        power = float(a[:count].norm() * b[:count].norm())
        if power > 0 and 2 * count >= min(len(x), len(y)):
            best = max(best, float(near[index]) / power)
    return min(best, 1.0)


def _similar_pairs(fingerprints: Float[np.ndarray, "b n"]) -> list[tuple[int, int]]:
    """Return sorted pairs (earlier, later) of files with similar fingerprints, the nearest few of each file."""
    x = torch.from_numpy(np.ascontiguousarray(fingerprints, dtype=np.float32))
    scale, pairs = x.shape[1] ** 0.5, set()
    for start in range(0, len(x), _ROWS):
        distances = torch.cdist(x[start : start + _ROWS], x) / scale
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        values, columns = distances.topk(min(MAX_NEIGHBORS, len(x)), largest=False)
        for row, column in (values <= MAX_DISTANCE_DB).nonzero().tolist():
            a, b = start + row, int(columns[row, column])
            pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def _load_wave(path: Path | ByteRange) -> Float[Tensor, " n"]:
    """Return the beginning of a file in mono, with pre-emphasis."""
    header = audio_io.probe(path)
    samples, rate = audio_io.read_samples(path, 0, max(1, round(COMPARE_SECONDS * header.sample_rate)))
    wave = resample(torch.from_numpy(samples.mean(1)), rate, COMPARE_RATE)
    return torch.cat([wave[:1], wave[1:] - 0.95 * wave[:-1]])
