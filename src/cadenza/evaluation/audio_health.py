"""Soundness: is there sound at all, how loud is it, does it clip, and how far is it from a reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cadenza.dsp.audio import Audio
from cadenza.dsp.loudness import loudness

QUIET = -60.0  # LUFS below which a clip counts as silent, dBFS below which a moment does
GAP = 3.0  # seconds of silence inside a clip that count as a hole
FULL, SHARE = 0.999, 1e-4  # samples at full scale, and the share of them that counts as clipping


@dataclass(frozen=True)
class AudioHealth:
    """Rates over clips, and the mean and standard deviation of the loudness of those that sound."""

    silent: float
    holes: float
    clipping: float
    lufs: float
    lufs_spread: float


def audio_health(clips: Sequence[Audio]) -> AudioHealth:
    """How sound some clips are, each a batch of one."""
    waves = [clip.wave[0].detach().float().cpu() for clip in clips]
    levels = torch.tensor([loudness(wave, clip.sample_rate) for wave, clip in zip(waves, clips, strict=True)])
    heard = levels[levels > QUIET]
    return AudioHealth(
        float((levels <= QUIET).float().mean()),
        _share([longest_gap(wave, clip.sample_rate) > GAP for wave, clip in zip(waves, clips, strict=True)]),
        _share([bool((wave.abs() >= FULL).float().mean() > SHARE) for wave in waves]),
        float(heard.mean()) if len(heard) else -math.inf,
        float(heard.std(correction=0)) if len(heard) else 0.0,
    )


def longest_gap(wave: Float[Tensor, "c t"], sample_rate: int) -> float:
    """The longest run of silent twentieths of a second, in seconds."""
    size = max(1, sample_rate // 20)
    longest = run = 0
    for silent in _quiet(wave, size).tolist():
        run = run + 1 if silent else 0
        longest = max(longest, run)
    return longest * size / sample_rate


def last_sound_seconds(wave: Float[Tensor, "c t"], sample_rate: int) -> float:
    """The second at which the last twentieth of a second that is not silent ends, 0 if none is there."""
    size = max(1, sample_rate // 20)
    loud = torch.nonzero(~_quiet(wave, size))
    return min((int(loud[-1]) + 1) * size, wave.shape[-1]) / sample_rate if len(loud) else 0.0


def _quiet(wave: Float[Tensor, "c t"], size: int) -> Bool[Tensor, " n"]:
    """Which stretches of so many samples are silent."""
    padded = torch.nn.functional.pad(wave.detach().float().cpu().mean(0), (0, -wave.shape[-1] % size))
    return padded.unflatten(0, (-1, size)).square().mean(-1).sqrt() < 10 ** (QUIET / 20)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))
