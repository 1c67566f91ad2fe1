"""Soundness: is there sound at all, how loud is it, does it clip, and how far is it from a reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.dsp.audio import Audio
from cadenza.dsp.loudness import loudness
from cadenza.dsp.spectra import mel_filters, mel_spectrogram

QUIET = -60.0  # LUFS below which a clip counts as silent, dBFS below which a moment does
GAP = 3.0  # seconds of silence inside a clip that count as a hole
FULL, SHARE = 0.999, 1e-4  # samples at full scale, and the share of them that counts as clipping
_FLOOR = 1e-5


@dataclass(frozen=True)
class Soundness:
    """Rates over clips, and the mean and standard deviation of the loudness of those that sound."""

    silent: float
    holes: float
    clipping: float
    lufs: float
    lufs_spread: float


def soundness(clips: Sequence[Audio]) -> Soundness:
    """How sound some clips are, each a batch of one."""
    waves = [clip.wave[0].detach().float().cpu() for clip in clips]
    levels = torch.tensor([loudness(wave, clip.sample_rate) for wave, clip in zip(waves, clips, strict=True)])
    heard = levels[levels > QUIET]
    return Soundness(
        float((levels <= QUIET).float().mean()),
        _share([longest_gap(wave, clip.sample_rate) > GAP for wave, clip in zip(waves, clips, strict=True)]),
        _share([bool((wave.abs() >= FULL).float().mean() > SHARE) for wave in waves]),
        float(heard.mean()) if len(heard) else -math.inf,
        float(heard.std(correction=0)) if len(heard) else 0.0,
    )


def longest_gap(wave: Float[Tensor, "c t"], sample_rate: int) -> float:
    """The longest run of silent twentieths of a second, in seconds."""
    size = max(1, sample_rate // 20)
    padded = torch.nn.functional.pad(wave.mean(0), (0, -wave.shape[-1] % size))
    quiet = padded.unflatten(0, (-1, size)).square().mean(-1).sqrt() < 10 ** (QUIET / 20)
    longest = run = 0
    for silent in quiet.tolist():
        run = run + 1 if silent else 0
        longest = max(longest, run)
    return longest * size / sample_rate


def si_sdr(made: Float[Tensor, " t"], reference: Float[Tensor, " t"]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    made, reference = made - made.mean(), reference - reference.mean()
    target = (made @ reference) / reference.square().sum().clamp(min=1e-12) * reference
    return float(10 * torch.log10(target.square().sum().clamp(min=1e-12) / (made - target).square().sum().clamp(min=1e-12)))


def mel_distance(made: Float[Tensor, " t"], reference: Float[Tensor, " t"], sample_rate: int) -> float:
    """The mean distance of two clips' mel spectrograms in dB, 80 bands, nothing below -100 dB."""
    one, other = (10 * torch.log10(_mel(wave, sample_rate).clamp(min=_FLOOR**2)) for wave in (made, reference))
    return float((one - other).abs().mean())


def _mel(wave: Tensor, sample_rate: int) -> Tensor:
    return mel_spectrogram(wave[None, None], _filters(sample_rate), hop=512, normalized=True)[0, 0]


@cache
def _filters(sample_rate: int) -> Tensor:
    return mel_filters(sample_rate, 2048, mels=80)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))
