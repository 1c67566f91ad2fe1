"""Memorization: distances of generated clips to the training set, compared with those of unseen references."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.dsp.audio import Audio
from cadenza.evaluation.estimator_net import BINS_PER_SEMITONE, SEMITONES, extract_features

WINDOW, STEP = 48, 6  # pitch frames: 3.84 s, every 0.48 s
_POOL = 3  # pitch frames per cell: 0.24 s
_LOW, _HIGH = 12, 72  # semitones used: 65 Hz to 2 kHz
_WIDTH = 128
QUANTILE = 0.01


@dataclass(frozen=True)
class MemorizationReport:
    """Share of clips nearer to the training set than all but 1 % of unseen reference clips, with distances."""

    rate: float
    threshold: float  # distance: 0 for equal windows, 2 for opposite ones
    nearest: list[float]  # distance of each clip
    reference: float  # median distance of the reference clips
    training_clips: int


def audio_fingerprints(audio: Audio) -> list[Float[Tensor, "windows 128"]]:
    """Return unit vectors of the pitches in overlapping windows of each clip, independent of its level."""
    rows, rng = (_HIGH - _LOW) * (WINDOW // _POOL), torch.Generator().manual_seed(0)
    projection = torch.randn(rows, _WIDTH, generator=rng) / _WIDTH**0.5  # preserves distances (Johnson & Lindenstrauss 1984)
    fingerprints = []
    for clip in audio:
        pitch = extract_features(clip).pitch[0]
        semitones = pitch.unflatten(0, (SEMITONES, BINS_PER_SEMITONE)).amax(1)[_LOW:_HIGH]
        cells = torch.nn.functional.avg_pool1d(semitones[None], _POOL, ceil_mode=True)[0]
        size, step = WINDOW // _POOL, STEP // _POOL
        cells = torch.nn.functional.pad(cells, (0, max(0, size - cells.shape[-1])))
        windows = cells.unfold(-1, size, step).permute(1, 0, 2)
        windows = windows - windows.mean((1, 2), keepdim=True)
        fingerprints.append(torch.nn.functional.normalize(windows.flatten(1) @ projection, dim=-1))
    return fingerprints


def nearest_distances(clips: Sequence[Tensor], training: Tensor, *, chunk: int = 65536) -> Float[Tensor, " n"]:
    """Return each clip's smallest distance to the windows `training` [n, 128], computed in chunks of windows."""
    cosines = [max(float((windows @ part.T).max()) for part in training.split(chunk)) for windows in clips]
    return torch.tensor([(2 - 2 * min(cosine, 1.0)) ** 0.5 for cosine in cosines])


def memorization_rate(
    generated: Sequence[Tensor], reference: Sequence[Tensor], training: Sequence[Tensor]
) -> MemorizationReport:
    """Compute the copy rate of clips from their fingerprints, each [windows, 128]."""
    windows = torch.cat(list(training))
    distances, unseen = nearest_distances(generated, windows), nearest_distances(reference, windows)
    threshold = float(torch.quantile(unseen, QUANTILE))
    rate = float((distances < threshold).float().mean())
    nearest = [round(x, 4) for x in distances.tolist()]
    return MemorizationReport(rate, threshold, nearest, float(unseen.median()), len(training))
