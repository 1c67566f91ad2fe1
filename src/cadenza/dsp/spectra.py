"""Short-time spectra and mel scales."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F


def stft(
    wave: Float[Tensor, "... t"],
    n_fft: int,
    *,
    hop: int,
    window: int | None = None,
    center: bool = True,
    normalized: bool = False,
) -> Complex[Tensor, "... bins frames"]:
    """The short-time Fourier transform under a Hann window of `window` samples; `normalized` divides by its L2 norm.

    With `center` the wave is mirrored by half a window at both ends, so that frame i lies around sample i * hop.
    """
    taper = torch.hann_window(window or n_fft, device=wave.device, dtype=wave.dtype)
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(flat, n_fft, hop, window or n_fft, taper, center=center, pad_mode="reflect", return_complex=True)
    if normalized:
        spectrum = spectrum / taper.square().sum().sqrt()
    return spectrum.reshape(*wave.shape[:-1], *spectrum.shape[-2:])


def mel_filters(
    sample_rate: int, n_fft: int, *, mels: int, f_min: float = 0.0, f_max: float | None = None
) -> Float[Tensor, "mels bins"]:
    """Triangles of height 1, spaced evenly on the HTK mel scale 2595 log10(1 + f / 700)."""
    top = 2595.0 * torch.log10(torch.tensor(1.0 + (f_max or sample_rate / 2) / 700.0, dtype=torch.float64))
    low = 2595.0 * torch.log10(torch.tensor(1.0 + f_min / 700.0, dtype=torch.float64))
    steps = torch.linspace(0, 1, mels + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** ((low + steps * (top - low)) / 2595.0) - 1.0)
    hertz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0.0).float()


def mel_spectrogram(
    wave: Float[Tensor, "b c t"], filters: Float[Tensor, "mels bins"], *, hop: int, normalized: bool = False
) -> Float[Tensor, "b c mels frames"]:
    """The power in each mel band, in ceil(t / hop) frames that hop over the whole wave."""
    n_fft = 2 * (filters.shape[1] - 1)
    side = (n_fft - hop) // 2
    tail = -(wave.shape[-1] + 2 * side - n_fft) % hop
    mode = "reflect" if wave.shape[-1] > max(side, 1) else "constant"
    padded = F.pad(F.pad(wave, (side, side), mode), (0, tail))
    power = stft(padded, n_fft, hop=hop, center=False, normalized=normalized).abs().square()
    return filters @ power
