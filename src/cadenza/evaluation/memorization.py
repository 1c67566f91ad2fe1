"""Copies: how near generated clips come to the training set, against how near unseen music comes by itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.dsp.audio import Audio
from cadenza.evaluation.estimator_net import PARTS, SEMITONES, extract_features

WINDOW, STEP = 48, 6  # pitch frames: 3.84 s, every half second
_POOL = 3  # pitch frames of a cell: a quarter of a second
_LOW, _HIGH = 12, 72  # semitones kept: 65 Hz to 2 kHz
_WIDTH = 128
QUANTILE = 0.01


@dataclass(frozen=True)
class MemorizationReport:
    """The share of clips nearer to the training set than all but 1 % of unseen reference clips."""

    rate: float
    threshold: float  # distance, 0 for the same passage to 2 for its opposite
    nearest: list[float]  # distance of each clip
    reference: float  # median distance of the reference clips
    training_clips: int


def audio_fingerprints(audio: Audio) -> list[Float[Tensor, "windows 128"]]:
    """Unit vectors of what each clip plays in overlapping windows of four seconds, blind to level and colour."""
    prints = []
    for clip in audio:
        pitch = extract_features(clip).pitch[0]
        semitones = pitch.unflatten(0, (SEMITONES, PARTS)).amax(1)[_LOW:_HIGH]
        cells = torch.nn.functional.avg_pool1d(semitones[None], _POOL, ceil_mode=True)[0]
        size, step = WINDOW // _POOL, STEP // _POOL
        cells = torch.nn.functional.pad(cells, (0, max(0, size - cells.shape[-1])))
        windows = cells.unfold(-1, size, step).permute(1, 0, 2)
        windows = windows - windows.mean((1, 2), keepdim=True)
        prints.append(torch.nn.functional.normalize(windows.flatten(1) @ _projection(), dim=-1))
    return prints


def _projection() -> Float[Tensor, "m 128"]:
    """A fixed random projection, which keeps distances (Johnson & Lindenstrauss 1984)."""
    size = (_HIGH - _LOW) * (WINDOW // _POOL)
    return torch.randn(size, _WIDTH, generator=torch.Generator().manual_seed(0)) / _WIDTH**0.5


def nearest_distances(clips: Sequence[Tensor], training: Tensor, *, chunk: int = 65536) -> Float[Tensor, " n"]:
    """The distance of each clip's nearest window to any window of the training set."""
    found = []
    for prints in clips:
        best = max(float((prints @ part.T).max()) for part in training.split(chunk))
        found.append((2 - 2 * min(best, 1.0)) ** 0.5)
    return torch.tensor(found)


def memorization_rate(
    generated: Sequence[Tensor],
    reference: Sequence[Tensor],
    training: Iterable[Tensor],
    *,
    progress: Callable[[int], None] | None = None,
) -> MemorizationReport:
    """The copy rate of fingerprinted clips; `training` gives one clip's fingerprints after the other."""
    known = []
    for done, prints in enumerate(training, 1):
        known.append(prints)
        if progress is not None:
            progress(done)
    table = torch.cat(known)
    made, usual = nearest_distances(generated, table), nearest_distances(reference, table)
    threshold = float(torch.quantile(usual, QUANTILE))
    rate = float((made < threshold).float().mean())
    return MemorizationReport(rate, threshold, [round(x, 4) for x in made.tolist()], float(usual.median()), len(known))
