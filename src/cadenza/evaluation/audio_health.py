"""Audio health: rates of silent clips, holes and clipping, and the loudness of the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cadenza.dsp.audio import Audio
from cadenza.dsp.loudness import loudness

SILENCE_DB = -60.0  # a clip is silent below this in LUFS, a twentieth of a second below this in dBFS
MIN_HOLE_SECONDS = 3.0
FULL_SCALE, MAX_FULL_SCALE_SHARE = 0.999, 1e-4  # a clip with a greater share of samples at full scale clips


@dataclass(frozen=True)
class AudioHealth:
    """Rates over clips in 0 to 1; mean and standard deviation of the loudness of clips that are not silent, in LUFS."""

    silent: float
    holes: float
    clipping: float
    lufs: float
    lufs_spread: float


def audio_health(clips: Sequence[Audio]) -> AudioHealth:
    """Measure the health of clips, each a batch of one."""
    waves = [clip.wave[0].detach().float().cpu() for clip in clips]
    levels = torch.tensor([loudness(wave, clip.sample_rate) for wave, clip in zip(waves, clips, strict=True)])
    audible = levels[levels > SILENCE_DB]
    return AudioHealth(
        float((levels <= SILENCE_DB).float().mean()),
        fmean(longest_gap(wave, clip.sample_rate) > MIN_HOLE_SECONDS for wave, clip in zip(waves, clips, strict=True)),
        fmean(bool((wave.abs() >= FULL_SCALE).float().mean() > MAX_FULL_SCALE_SHARE) for wave in waves),
        float(audible.mean()) if len(audible) else -math.inf,
        float(audible.std(correction=0)) if len(audible) else 0.0,
    )


def longest_gap(wave: Float[Tensor, "c t"], sample_rate: int) -> float:
    """Return the longest run of silent twentieths of a second, in seconds."""
    size = max(1, sample_rate // 20)
    runs = [len(list(run)) for silent, run in groupby(_silent_blocks(wave, size).tolist()) if silent]
    return max(runs, default=0) * size / sample_rate


def last_sound_seconds(wave: Float[Tensor, "c t"], sample_rate: int) -> float:
    """Return the end of the last twentieth of a second that is not silent, in seconds; 0 for silence."""
    size = max(1, sample_rate // 20)
    loud = torch.nonzero(~_silent_blocks(wave, size))
    return min((int(loud[-1]) + 1) * size, wave.shape[-1]) / sample_rate if len(loud) else 0.0


def _silent_blocks(wave: Float[Tensor, "c t"], size: int) -> Bool[Tensor, " n"]:
    """Mask of the blocks of `size` samples that are silent."""
    padded = torch.nn.functional.pad(wave.detach().float().cpu().mean(0), (0, -wave.shape[-1] % size))
    return padded.unflatten(0, (-1, size)).square().mean(-1).sqrt() < 10 ** (SILENCE_DB / 20)
