"""Log-mel pictures of sounds in windows of one length, as encoders of sounds take them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.dsp.spectra import mel_filters, stft

_FLOOR = 1e-10  # of the power in a band, -100 dB


@dataclass(frozen=True)
class LogMelFrontend:
    """How a sound becomes pictures: `bands` from `f_min` to `f_max` Hz every `hop` samples of windows of `samples`.

    A shorter sound is one window: padded with zeros (`pad`), after whole repetitions (`repeatpad`), or full of them
    (`repeat`). The bands are those of `htk` or of `slaney`, as torchaudio and librosa have them by default.
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
        """Frames and bands of a picture."""
        return self.samples // self.hop + 1, self.n_mels

    def __call__(self, wave: Float[Tensor, " t"], *, stride: float) -> Float[Tensor, "w f m"]:
        """A picture every `stride` seconds, in decibels; what is left at the end is in none."""
        parts = self.split_windows(wave, max(1, round(stride * self.sample_rate)))
        power = stft(parts.double(), self.n_fft, hop=self.hop).abs().square()  # double: quiet bands beside loud ones
        return 10 * torch.log10((self.filters @ power).clamp(min=_FLOOR)).transpose(1, 2).float()

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
    """Triangles of area 1 on the mel scale of Slaney's Auditory Toolbox (1998): linear to 1 kHz, logarithmic above."""
    ends = torch.tensor([f_min, f_max or sample_rate / 2], dtype=torch.float64)
    step = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27  # of the logarithm of a frequency, one mel
    low, top = torch.where(ends < 1000, ends * 3 / 200, 15 + torch.log(ends.clamp(min=1) / 1000) / step)
    at = low + torch.linspace(0, 1, mels + 2, dtype=torch.float64) * (top - low)
    edges = torch.where(at < 15, at * 200 / 3, 1000 * torch.exp(step * (at - 15)))
    hertz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0.0) * 2 / (edges[2:] - edges[:-2])[:, None]
