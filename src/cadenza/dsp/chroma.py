"""Chroma: how strong each pitch class is, frame by frame."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.dsp.spectra import stft

_LOWEST = 27.5  # Hz of the A from which octaves are counted
_CENTRE, _SPREAD = 5.0, 2.0  # octaves above it at which a bin counts most, and over how many its weight falls


def chroma_filters(sample_rate: int, n_fft: int, *, bins: int = 12) -> Float[Tensor, "k f"]:
    """How much of each bin of a spectrum belongs to each of `bins` pitch classes from C on, in the tuning of A = 440 Hz.

    Bumps as wide as a bin is in pitch, of norm 1 in each column, weighted around 880 Hz (Ellis 2007, as in librosa).
    """
    hertz = torch.arange(1, n_fft // 2 + 2, dtype=torch.float64) * sample_rate / n_fft
    place = bins * (hertz / _LOWEST).log2()
    place = torch.cat([place[:1] - 1.5 * bins, place])  # the constant part: half a turn away, and broad
    width = place.diff().clamp(min=1.0)
    place = place[:-1]
    half = round(bins / 2)
    away = (place - torch.arange(bins, dtype=torch.float64)[:, None] + half).remainder(bins) - half
    bumps = F.normalize(torch.exp(-2.0 * (away / width).square()), dim=0, eps=0.0)
    weighted = bumps * torch.exp(-0.5 * ((place / bins - _CENTRE) / _SPREAD).square())
    return weighted.roll(-3 * (bins // 12), 0).float()  # from A to C


def chromagram(wave: Float[Tensor, "*b t"], filters: Float[Tensor, "k f"], *, hop: int) -> Float[Tensor, "*b n k"]:
    """The strength of each pitch class over that of the strongest one in a frame; all 0 in silence.

    There are 1 + t // hop frames, around the samples 0, hop, ...; a wave shorter than the window is first put into the
    middle of one of silence (AudioCraft's, arXiv:2306.05284).
    """
    n_fft = 2 * (filters.shape[1] - 1)
    missing = max(0, n_fft - wave.shape[-1])
    padded = F.pad(wave, (missing // 2, missing - missing // 2))
    power = stft(padded, n_fft, hop=hop, normalized=True).abs().square()
    strength = torch.einsum("kf,...fn->...nk", filters.to(power), power)
    return F.normalize(strength, p=math.inf, dim=-1, eps=1e-6)


def chroma_frames(samples: int, n_fft: int, hop: int) -> int:
    """How many frames `chroma` gives for so many samples."""
    return 1 + max(samples, n_fft) // hop


def one_hot_argmax(x: Float[Tensor, "*b n k"]) -> Float[Tensor, "*b n k"]:
    """1 at the strongest pitch class of each frame, at the first of equals, and 0 at the others."""
    return F.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)
