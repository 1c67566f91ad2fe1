"""How near a reconstruction comes to the original."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.dsp.spectra import mel_filters, mel_spectrogram


def si_sdr(x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"], *, eps: float = 1e-8) -> Float[Tensor, " b"]:
    """Scale-invariant signal-to-distortion ratio of `x` to the target `y`, in dB, means removed (Le Roux et al. 2019)."""
    x, y = ((w - w.mean(-1, keepdim=True)).flatten(1) for w in (x, y))
    target = (x * y).sum(-1, keepdim=True) / (y.square().sum(-1, keepdim=True) + eps) * y
    return 10.0 * torch.log10((target.square().sum(-1) + eps) / ((x - target).square().sum(-1) + eps))


def mel_distance(made: Float[Tensor, " t"], reference: Float[Tensor, " t"], sample_rate: int) -> float:
    """The mean distance of two clips' mel spectrograms in dB, 80 bands, nothing below -100 dB."""
    one, other = (10 * torch.log10(_mel(wave, sample_rate).clamp(min=1e-10)) for wave in (made, reference))
    return float((one - other).abs().mean())


def _mel(wave: Tensor, sample_rate: int) -> Tensor:
    return mel_spectrogram(wave[None, None], _filters(sample_rate), hop=512, normalized=True)[0, 0]


@cache
def _filters(sample_rate: int) -> Tensor:
    return mel_filters(sample_rate, 2048, mels=80)
