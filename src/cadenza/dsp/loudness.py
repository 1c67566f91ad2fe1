"""Integrated loudness (ITU-R BS.1770-4) and loudness normalization with a peak ceiling."""

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.dsp.audio import Audio

BLOCK, STEP = 0.4, 0.1  # seconds: length of a gating block, hop between blocks
ABSOLUTE, RELATIVE = -70.0, -10.0  # gates: LUFS, and LU relative to the loudness above the first gate
CEILING = -1.0  # dBFS: highest sample peak of normalized clips
OFFSET = -0.691  # dB; makes a full-scale 997 Hz sine in one channel read -3.01 LUFS
_WEIGHTS = {4: (1, 1, 1.41, 1.41), 5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41)}  # quad, 5.0, 5.1 in wav order
_CHUNK = 60.0  # seconds filtered at once
_RUN_IN = 1.0  # seconds after which the impulse responses are below 1e-100


def loudness(wave: Float[Tensor, "c t"], sample_rate: int) -> float:
    """Return the integrated loudness in LUFS, -inf for silence; a clip below 0.4 s is one block."""
    powers = _blocks(wave, sample_rate)
    loud = powers[_lufs(powers) > ABSOLUTE]
    if not len(loud):
        return -math.inf
    gate = _lufs(loud.mean()) + RELATIVE
    return float(_lufs(loud[_lufs(loud) > gate].mean()))


def normalize_loudness(audio: Audio, lufs: float) -> Audio:
    """Scale each clip to `lufs`, or less, with a warning, to keep its peak below -1 dBFS; silence is unchanged."""
    clips = []
    for i, clip in enumerate(audio):
        wave = clip.wave[0].float()
        current, peak = loudness(wave, clip.sample_rate), float(wave.abs().max()) if wave.numel() else 0.0
        if math.isfinite(current) and peak > 0:
            wave = wave * min(10 ** ((lufs - current) / 20), 10 ** (CEILING / 20) / peak)
        reached = loudness(wave, clip.sample_rate)
        if -70 < reached < lufs - 0.1:
            warnings.warn(f"clip {i + 1} stays at {reached:.1f} LUFS: {lufs:g} would clip its peaks", stacklevel=3)
        clips.append(Audio(wave[None].to(audio.wave), clip.sample_rate))
    return Audio.pad_and_stack(clips)


def k_weighting(sample_rate: int) -> tuple[Float[Tensor, "2 3"], Float[Tensor, "2 3"]]:
    """Return numerators and denominators of the K-weighting shelf and high-pass filters at a sample rate.

    BS.1770-4, annex 1, tables 1 and 2; the analog prototypes of their 48 kHz coefficients by the bilinear transform
    (Brecht De Man, 2018).
    """
    gain, quality, k = 3.999843853973347, 0.7071752369554196, math.tan(math.pi * 1681.974450955533 / sample_rate)
    high = 10 ** (gain / 20)
    band = high**0.4996667741545416
    shelf = [high + band * k / quality + k * k, 2 * (k * k - high), high - band * k / quality + k * k]
    under = [1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k]
    quality, k = 0.5003270373238773, math.tan(math.pi * 38.13547087602444 / sample_rate)
    below = [1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k]
    numerators = torch.tensor([[x / under[0] for x in shelf], [1.0, -2.0, 1.0]], dtype=torch.float64)
    denominators = torch.tensor([[x / under[0] for x in under], [x / below[0] for x in below]], dtype=torch.float64)
    return numerators, denominators


def _lufs(power: Tensor) -> Tensor:
    return OFFSET + 10 * torch.log10(power)


def _blocks(wave: Tensor, sample_rate: int) -> Float[Tensor, " n"]:
    """Return the weighted mean square of each gating block."""
    wave = wave.detach().to("cpu", torch.float64)
    weights = torch.tensor(_WEIGHTS.get(len(wave), (1,) * len(wave)), dtype=torch.float64)
    chunk, run_in, total = round(_CHUNK * sample_rate), round(_RUN_IN * sample_rate), wave.shape[-1]
    energy = [torch.zeros(1, dtype=torch.float64)]  # running sum of the weighted squares
    for begin in range(0, total, chunk):
        early = max(0, begin - run_in)
        filtered = _apply_k_weighting(wave[:, early : begin + chunk], sample_rate)[:, begin - early :]
        energy.append((weights @ filtered.square()).cumsum(0) + energy[-1][-1])
    summed = torch.cat(energy)
    size, count = round(BLOCK * sample_rate), max(1, int((total / sample_rate - BLOCK) / STEP + 1e-9) + 1)
    starts = (torch.arange(count) * STEP * sample_rate).round().long()
    ends = (starts + size).clamp(max=total)
    return (summed[ends] - summed[starts]) / (ends - starts).clamp(min=1)


def _apply_k_weighting(wave: Tensor, sample_rate: int) -> Tensor:
    """Apply K-weighting in the frequency domain, with zero padding for the filters' decay."""
    size = 1 << (wave.shape[-1] + round(_RUN_IN * sample_rate) - 1).bit_length()
    numerators, denominators = (torch.fft.rfft(x, size) for x in k_weighting(sample_rate))
    return torch.fft.irfft(torch.fft.rfft(wave, size) * (numerators / denominators).prod(0), size)[:, : wave.shape[-1]]
