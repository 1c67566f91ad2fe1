"""STFT, mel and chroma spectra, log-mel frontend, and spectral distances."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

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
    """Return the short-time Fourier transform with a Hann window of `window` samples (default `n_fft`).

    `normalized` divides by the window's L2 norm. With `center`, the wave is reflected by half a window at both ends, so that
    frame i is centered on sample i * hop.
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
    """Return triangular filters of height 1, evenly spaced on the HTK mel scale 2595 log10(1 + f / 700)."""
    top = 2595.0 * torch.log10(torch.tensor(1.0 + (f_max or sample_rate / 2) / 700.0, dtype=torch.float64))
    low = 2595.0 * torch.log10(torch.tensor(1.0 + f_min / 700.0, dtype=torch.float64))
    steps = torch.linspace(0, 1, mels + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** ((low + steps * (top - low)) / 2595.0) - 1.0)
    return _triangles(edges, sample_rate, n_fft).float()


def _triangles(edges: Float[Tensor, " n"], sample_rate: int, n_fft: int) -> Float[Tensor, "mels bins"]:
    """Return triangular filters of height 1 between edges in Hz."""
    hertz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0.0)


def mel_spectrogram(
    wave: Float[Tensor, "b c t"], filters: Float[Tensor, "mels bins"], *, hop: int, normalized: bool = False
) -> Float[Tensor, "b c mels frames"]:
    """Return the power in each mel band, in ceil(t / hop) frames."""
    n_fft = 2 * (filters.shape[1] - 1)
    side = (n_fft - hop) // 2
    tail = -(wave.shape[-1] + 2 * side - n_fft) % hop
    mode = "reflect" if wave.shape[-1] > max(side, 1) else "constant"
    padded = F.pad(F.pad(wave, (side, side), mode), (0, tail))
    power = stft(padded, n_fft, hop=hop, center=False, normalized=normalized).abs().square()
    return filters @ power


_POWER_FLOOR = 1e-10  # of a mel band: -100 dB
_REFERENCE_HZ = 27.5  # A0, from which octaves are counted
_CENTER_OCTAVE, _OCTAVE_WIDTH = 5.0, 2.0  # Gaussian weight of bins over octaves above A0


def chroma_filters(sample_rate: int, n_fft: int, *, bins: int = 12) -> Float[Tensor, "k f"]:
    """Return the weights of spectrum bins for `bins` pitch classes, C first, at A = 440 Hz.

    Gaussians as wide as a bin, columns of norm 1, weighted around 880 Hz (Ellis 2007, as in librosa).
    """
    hertz = torch.arange(1, n_fft // 2 + 2, dtype=torch.float64) * sample_rate / n_fft
    pitch = bins * (hertz / _REFERENCE_HZ).log2()
    pitch = torch.cat([pitch[:1] - 1.5 * bins, pitch])  # bin 0: 1.5 octaves below bin 1, and broad
    width = pitch.diff().clamp(min=1.0)
    pitch = pitch[:-1]
    half = round(bins / 2)
    distance = (pitch - torch.arange(bins, dtype=torch.float64)[:, None] + half).remainder(bins) - half
    bumps = F.normalize(torch.exp(-2.0 * (distance / width).square()), dim=0, eps=0.0)
    weighted = bumps * torch.exp(-0.5 * ((pitch / bins - _CENTER_OCTAVE) / _OCTAVE_WIDTH).square())
    return weighted.roll(-3 * (bins // 12), 0).float()  # from A to C


def chromagram(wave: Float[Tensor, "*b t"], filters: Float[Tensor, "k f"], *, hop: int) -> Float[Tensor, "*b n k"]:
    """Return the strength of each pitch class relative to the strongest one of the frame; 0 in silence.

    There are 1 + t // hop frames, centered on samples 0, hop, ...; a wave shorter than the window is centered in zeros first
    (as AudioCraft does, arXiv:2306.05284).
    """
    n_fft = 2 * (filters.shape[1] - 1)
    missing = max(0, n_fft - wave.shape[-1])
    padded = F.pad(wave, (missing // 2, missing - missing // 2))
    power = stft(padded, n_fft, hop=hop, normalized=True).abs().square()
    strength = torch.einsum("kf,...fn->...nk", filters.to(power), power)
    return F.normalize(strength, p=math.inf, dim=-1, eps=1e-6)


def chroma_frames(samples: int, n_fft: int, hop: int) -> int:
    """Return the number of frames of `chromagram` for `samples` samples."""
    return 1 + max(samples, n_fft) // hop


def one_hot_argmax(x: Float[Tensor, "*b n k"]) -> Float[Tensor, "*b n k"]:
    """Return 1 at the strongest pitch class of each frame (the first of equals), 0 elsewhere."""
    return F.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)


def si_sdr(x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"], *, eps: float = 1e-8) -> Float[Tensor, " b"]:
    """Return the scale-invariant signal-to-distortion ratio of `x` to target `y` in dB, means removed (Le Roux et al. 2019)."""
    x, y = ((w - w.mean(-1, keepdim=True)).flatten(1) for w in (x, y))
    target = (x * y).sum(-1, keepdim=True) / (y.square().sum(-1, keepdim=True) + eps) * y
    return 10.0 * torch.log10((target.square().sum(-1) + eps) / ((x - target).square().sum(-1) + eps))


def mel_distance(generated: Float[Tensor, " t"], reference: Float[Tensor, " t"], sample_rate: int) -> float:
    """Return the mean absolute difference of two mel spectrograms in dB, 80 bands, floor -100 dB."""
    filters = mel_filters(sample_rate, 2048, mels=80)
    mels = [mel_spectrogram(wave[None, None], filters, hop=512, normalized=True) for wave in (generated, reference)]
    one, other = (10 * torch.log10(mel.clamp(min=_POWER_FLOOR)) for mel in mels)
    return float((one - other).abs().mean())


@dataclass(frozen=True)
class LogMelFrontend:
    """Log-mel spectrograms of windows of `samples` samples: `n_mels` bands from `f_min` to `f_max` Hz every `hop` samples.

    Shorter audio is one window: zero-padded (`pad`), repeated whole times and zero-padded (`repeatpad`), or repeated until
    full (`repeat`). `scale` is the mel scale: `htk` (default of torchaudio) or `slaney` (default of librosa).
    """

    sample_rate: int
    samples: int
    hop: int
    n_fft: int
    n_mels: int
    f_min: float
    f_max: float
    scale: Literal["htk", "slaney"]
    fill: Literal["repeatpad", "repeat", "pad"]

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and bands of one spectrogram."""
        return self.samples // self.hop + 1, self.n_mels

    def __call__(self, wave: Float[Tensor, " t"], *, stride: float) -> Float[Tensor, "w f m"]:
        """Return a spectrogram in dB for each window, `stride` seconds apart; an incomplete last window is dropped."""
        parts = self.split_windows(wave, max(1, round(stride * self.sample_rate)))
        power = stft(parts.double(), self.n_fft, hop=self.hop).abs().square()  # double, for quiet bands next to loud ones
        return 10 * torch.log10((self.filters @ power).clamp(min=_POWER_FLOOR)).transpose(1, 2).float()

    def split_windows(self, wave: Float[Tensor, " t"], stride: int) -> Float[Tensor, "w s"]:
        size = self.samples
        if wave.shape[-1] >= size:
            return wave.unfold(-1, size, stride)
        times = 1 if self.fill == "pad" else size // wave.shape[-1]
        filled = wave.repeat(times + (self.fill == "repeat"))[:size]
        return F.pad(filled, (0, size - filled.shape[-1]))[None]

    @cached_property
    def filters(self) -> Float[Tensor, "m bins"]:
        if self.scale == "htk":
            return mel_filters(self.sample_rate, self.n_fft, mels=self.n_mels, f_min=self.f_min, f_max=self.f_max).double()
        return slaney_mel_filters(self.sample_rate, self.n_fft, mels=self.n_mels, f_min=self.f_min, f_max=self.f_max)


def slaney_mel_filters(
    sample_rate: int, n_fft: int, *, mels: int, f_min: float = 0.0, f_max: float | None = None
) -> Float[Tensor, "mels bins"]:
    """Return triangular filters of area 1 on Slaney's mel scale (1998): linear up to 1 kHz, logarithmic above."""
    ends = torch.tensor([f_min, f_max or sample_rate / 2], dtype=torch.float64)
    step = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27  # of log frequency for one mel
    low, top = torch.where(ends < 1000, ends * 3 / 200, 15 + torch.log(ends.clamp(min=1) / 1000) / step)
    mel = low + torch.linspace(0, 1, mels + 2, dtype=torch.float64) * (top - low)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp(step * (mel - 15)))
    return _triangles(edges, sample_rate, n_fft) * 2 / (edges[2:] - edges[:-2])[:, None]
