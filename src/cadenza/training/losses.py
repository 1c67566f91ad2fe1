"""Losses of codec training: adversarial, feature matching, spectral; and the balancer of their gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from cadenza.dsp.spectral import mel_filters, mel_spectrogram, stft

Adversarial = Literal["hinge", "hinge2", "mse"]
Logits = Sequence[Float[Tensor, "b ..."]]
LOG_EPS = 1e-5  # added to mel spectra before the logarithm


def discriminator_loss(real: Logits, fake: Logits, kind: Adversarial = "hinge") -> Float[Tensor, " scales"]:
    """Return the loss of each sub-discriminator."""
    if kind == "mse":
        return torch.stack([(1.0 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)])
    return torch.stack([F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean() for r, f in zip(real, fake, strict=True)])


def generator_loss(fake: Logits, kind: Adversarial = "hinge") -> Float[Tensor, ""]:
    """Return the adversarial loss of generated audio, averaged over sub-discriminators."""
    match kind:
        case "hinge":
            losses = [-f.mean() for f in fake]
        case "hinge2":
            losses = [F.relu(1.0 - f).mean() for f in fake]
        case "mse":
            losses = [(1.0 - f).square().mean() for f in fake]
    return torch.stack(losses).mean()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
    """Return the L1 between discriminator features of real and generated audio, averaged over layers, then scales."""
    scales = [
        torch.stack([F.l1_loss(f, r.detach()) for r, f in zip(reals, fakes, strict=True)]).mean()
        for reals, fakes in zip(real, fake, strict=True)
    ]
    return torch.stack(scales).mean()


@dataclass(frozen=True)
class BalancedLoss:
    """`loss` has the balanced gradient with respect to the output; its value has no meaning."""

    loss: Float[Tensor, ""]
    effective: Float[Tensor, ""]  # weighted sum of the losses, with the effective weights
    shares: dict[str, Tensor]  # of the gradient norms before balancing


class Balancer(nn.Module):
    """Scale losses so that the share of each in the output's gradient equals its weight's share (EnCodec, eq. 6).

    Gradient norms are averaged over steps with `decay`, bias-corrected, and taken per item of the batch unless
    `per_item` is false. Without `balance` the losses are only multiplied by their weights.
    """

    norms: Tensor
    mass: Tensor

    def __init__(
        self, weights: Mapping[str, float], *, total_norm: float = 1.0, decay: float = 0.999, per_item: bool = True,
        balance: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.total_norm, self.decay, self.per_item, self.balance = total_norm, decay, per_item, balance
        self.register_buffer("norms", torch.zeros(len(self.weights)))
        self.register_buffer("mass", torch.zeros(len(self.weights)))

    def forward(self, losses: Mapping[str, Tensor], output: Float[Tensor, "b ..."]) -> BalancedLoss:
        """Balance the losses that have a weight; a loss may be missing at some steps."""
        names = [name for name in self.weights if name in losses]
        indices = torch.tensor([list(self.weights).index(name) for name in names], device=self.norms.device)
        grads = [torch.autograd.grad(losses[name], output, retain_graph=True)[0] for name in names]
        norms = [grad.flatten(1).norm(dim=1).mean() if self.per_item else grad.norm() for grad in grads]
        average = self._average(torch.stack(norms), indices)
        weights = torch.tensor([self.weights[name] for name in names], device=average.device)
        scales = weights / weights.sum() * self.total_norm / (average + 1e-12) if self.balance else weights
        gradient = sum((grad * scale for grad, scale in zip(grads, scales, strict=True)), torch.zeros_like(output))
        weighted = [losses[name].detach() * scale for name, scale in zip(names, scales, strict=True)]
        effective = sum(weighted, scales.new_zeros(()))
        shares = dict(zip(names, average / average.sum().clamp(min=1e-12), strict=True))
        return BalancedLoss((output * gradient.detach()).sum(), effective, shares)

    def _average(self, norms: Tensor, indices: Tensor) -> Tensor:
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(norms)
            norms = norms / distributed.get_world_size()
        self.norms[indices] = self.decay * self.norms[indices] + norms
        self.mass[indices] = self.decay * self.mass[indices] + 1.0
        return self.norms[indices] / self.mass[indices]


class MultiScaleMelLoss(nn.Module):
    """L1 of mel spectra plus weighted MSE of their logarithms over several window sizes (EnCodec, eq. 3).

    The weight of the second term is sqrt(window - 1) if `weighted`, otherwise 1. `normalized` divides spectra by the
    window's norm and the loss by the sum of the weights.
    """

    def __init__(
        self, sample_rate: int, *, windows: Sequence[int] = (64, 128, 256, 512, 1024, 2048), mels: int = 64,
        f_min: float = 64.0, weighted: bool = False, normalized: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.windows, self.normalized = tuple(windows), normalized
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
            logs = [torch.log10(mel + LOG_EPS) for mel in mels]
            loss = loss + F.l1_loss(mels[0], mels[1]) + weight * F.mse_loss(logs[0], logs[1])
        return loss / self.total


class LogMelLoss(nn.Module):
    """L1 of log10 mel spectra."""

    def __init__(self, sample_rate: int, *, n_fft: int = 1024, hop: int = 256, mels: int = 80, f_min: float = 0.0) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, mels=mels, f_min=f_min), persistent=False)

    def log_mel(self, wave: Float[Tensor, "b c t"]) -> Float[Tensor, "b c mels frames"]:
        return torch.log10(mel_spectrogram(wave, self.get_buffer("filters"), hop=self.hop) + LOG_EPS)

    def forward(self, x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"]) -> Float[Tensor, ""]:
        return F.l1_loss(self.log_mel(x), self.log_mel(y))


def stft_loss(
    x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"], *, n_fft: int = 1024, hop: int = 120, window: int = 600
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return spectral convergence and L1 of log magnitudes (Yamamoto et al. 2020, eqs. 4 and 5)."""
    mags = [stft(wave, n_fft, hop=hop, window=window).abs().square().clamp(min=1e-7).sqrt() for wave in (x, y)]
    convergence = (mags[1] - mags[0]).norm() / mags[1].norm()
    return convergence, F.l1_loss(mags[0].log(), mags[1].log())


def multi_resolution_stft_loss(
    x: Float[Tensor, "b c t"], y: Float[Tensor, "b c t"], *,
    resolutions: Sequence[tuple[int, int, int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
) -> Float[Tensor, ""]:  # fmt: skip
    """Return the sum of both STFT losses, averaged over resolutions (n_fft, hop, window)."""
    losses = [sum(stft_loss(x, y, n_fft=n, hop=h, window=w), x.new_zeros(())) for n, h, w in resolutions]
    return torch.stack(losses).mean()
