"""Losses between a wave and its reconstruction."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.dsp.spectra import mel_filters, mel_spectrogram, stft

FLOOR = 1e-5


class MultiScaleMelLoss(nn.Module):
    """L1 of mel spectra plus weighted MSE of their logarithms over several window sizes (EnCodec eq. 3).

    The second term weighs sqrt(window - 1) if `weighted` and else 1; `normalized` divides spectra by the window's
    norm and the loss by the sum of the weights.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        windows: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        mels: int = 64,
        f_min: float = 64.0,
        weighted: bool = False,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.normalized = normalized
        self.weights = [(size - 1) ** 0.5 if weighted else 1.0 for size in windows]
        self.total = sum(self.weights) + len(windows) if normalized else 1.0
        for size in windows:
            filters = mel_filters(sample_rate, size, mels=mels, f_min=f_min)
            self.register_buffer(f"filters{size}", filters, persistent=False)

    def forward(self, x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"]) -> Float[Tensor, ""]:
        loss = x.new_zeros(())
        for size, weight in zip(self.windows, self.weights, strict=True):
            filters = self.get_buffer(f"filters{size}")
            mels = [mel_spectrogram(w, filters, hop=size // 4, normalized=self.normalized) for w in (x, y)]
            logs = [torch.log10(mel + FLOOR) for mel in mels]
            loss = loss + F.l1_loss(mels[0], mels[1]) + weight * F.mse_loss(logs[0], logs[1])
        return loss / self.total


class LogMelLoss(nn.Module):
    """L1 of log10 mel spectra."""

    def __init__(self, sample_rate: int, *, n_fft: int = 1024, hop: int = 256, mels: int = 80, f_min: float = 0.0) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, mels=mels, f_min=f_min), persistent=False)

    def log_mel(self, wave: Float[Tensor, "b c t"]) -> Float[Tensor, "b c mels frames"]:
        return torch.log10(mel_spectrogram(wave, self.get_buffer("filters"), hop=self.hop) + FLOOR)

    def forward(self, x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"]) -> Float[Tensor, ""]:
        return F.l1_loss(self.log_mel(x), self.log_mel(y))


def stft_loss(
    x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"], *, n_fft: int = 1024, hop: int = 120, window: int = 600
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Spectral convergence and L1 of log magnitudes (Yamamoto et al. 2020, eqs. 4 and 5)."""
    mags = [stft(wave, n_fft, hop=hop, window=window).abs().square().clamp(min=1e-7).sqrt() for wave in (x, y)]
    convergence = (mags[1] - mags[0]).norm() / mags[1].norm()
    return convergence, F.l1_loss(mags[0].log(), mags[1].log())


def multi_resolution_stft_loss(
    x: Float[Tensor, "b c t"],
    y: Float[Tensor, "b c t"],
    *,
    resolutions: Sequence[tuple[int, int, int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
) -> Float[Tensor, ""]:
    """The mean of both STFT losses over (n_fft, hop, window)."""
    losses = [sum(stft_loss(x, y, n_fft=n, hop=h, window=w), x.new_zeros(())) for n, h, w in resolutions]
    return torch.stack(losses).mean()


def si_snr_loss(
    x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"], *, window: int, hop: int, eps: float = 1.2e-7
) -> Float[Tensor, ""]:
    """Minus the scale-invariant signal-to-noise ratio in dB, the mean over windows; the last are filled with zeros."""
    count = -(-x.shape[-1] // hop)
    missing = (count - 1) * hop + window - x.shape[-1]
    x, y = (F.pad(w, (0, max(missing, 0))).unfold(-1, window, hop) for w in (x, y))
    target = (x * y).mean(-1, keepdim=True) / (y.square().mean(-1, keepdim=True) + eps) * y
    return -10.0 * torch.log10((target.square().mean(-1) + eps) / ((x - target).square().mean(-1) + eps)).mean()
