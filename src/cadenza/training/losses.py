"""What a critic and what it judges minimise."""

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


def discriminator_loss(real: Logits, fake: Logits, kind: Adversarial = "hinge") -> Float[Tensor, " scales"]:
    """For each sub-discriminator, how badly it tells real from fake."""
    if kind == "mse":
        return torch.stack([(1.0 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)])
    return torch.stack([F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean() for r, f in zip(real, fake, strict=True)])


def generator_loss(fake: Logits, kind: Adversarial = "hinge") -> Float[Tensor, ""]:
    """How far from real the sub-discriminators find a fake, on average."""
    match kind:
        case "hinge":
            losses = [-f.mean() for f in fake]
        case "hinge2":
            losses = [F.relu(1.0 - f).mean() for f in fake]
        case "mse":
            losses = [(1.0 - f).square().mean() for f in fake]
    return torch.stack(losses).mean()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
    """L1 between a critic's features of real and fake: the mean over layers, then over sub-discriminators."""
    scales = [
        torch.stack([F.l1_loss(f, r.detach()) for r, f in zip(reals, fakes, strict=True)]).mean()
        for reals, fakes in zip(real, fake, strict=True)
    ]
    return torch.stack(scales).mean()


@dataclass(frozen=True)
class BalancedLoss:
    """`loss` has the balanced gradient with respect to the output but no meaning as a number.

    `shares` are those of the norms before balancing.
    """

    loss: Float[Tensor, ""]
    effective: Float[Tensor, ""]  # the weighted sum of the losses with the weights in effect
    shares: dict[str, Tensor]


class Balancer(nn.Module):
    """Makes each loss's share of the gradient at the output its weight's share, whatever the loss's scale.

    Norms are averaged over steps, bias-corrected, with `decay`; they are taken per item of the batch unless
    `per_item` is off. Without `balance` the weights simply multiply the losses.
    """

    norms: Tensor
    mass: Tensor

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        total_norm: float = 1.0,
        decay: float = 0.999,
        per_item: bool = True,
        balance: bool = True,
    ) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.total_norm = total_norm
        self.decay = decay
        self.per_item = per_item
        self.balance = balance
        self.register_buffer("norms", torch.zeros(len(self.weights)))
        self.register_buffer("mass", torch.zeros(len(self.weights)))

    def forward(self, losses: Mapping[str, Tensor], output: Float[Tensor, "b ..."]) -> BalancedLoss:
        """The balance of those losses that have a weight; a loss may be missing at some steps."""
        names = [name for name in self.weights if name in losses]
        places = torch.tensor([list(self.weights).index(name) for name in names], device=self.norms.device)
        grads = [torch.autograd.grad(losses[name], output, retain_graph=True)[0] for name in names]
        average = self._average(torch.stack([self._norm(grad) for grad in grads]), places)
        weights = torch.tensor([self.weights[name] for name in names], device=average.device)
        scales = weights / weights.sum() * self.total_norm / (average + 1e-12) if self.balance else weights
        gradient = sum((grad * scale for grad, scale in zip(grads, scales, strict=True)), torch.zeros_like(output))
        effective = sum(
            (losses[name].detach() * scale for name, scale in zip(names, scales, strict=True)), scales.new_zeros(())
        )
        shares = dict(zip(names, average / average.sum().clamp(min=1e-12), strict=True))
        return BalancedLoss((output * gradient.detach()).sum(), effective, shares)

    def _norm(self, grad: Tensor) -> Tensor:
        return grad.flatten(1).norm(dim=1).mean() if self.per_item else grad.norm()

    def _average(self, norms: Tensor, places: Tensor) -> Tensor:
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(norms)
            norms = norms / distributed.get_world_size()
        self.norms[places] = self.decay * self.norms[places] + norms
        self.mass[places] = self.decay * self.mass[places] + 1.0
        return self.norms[places] / self.mass[places]


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
