"""The convolutional networks of Stable Audio's autoencoder (Evans et al. 2024, arXiv:2404.10301), called Oobleck.

Layers are in the order of computation, so that their index is their name in a state dict. `strides` are given from the
sample rate downwards, and `widths`, the channels, before the first stride and after each.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

_DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin²(αx)/β (arXiv:2006.08195), with the logarithms of α and β trained for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c t"]:
        return x + (x * self.alpha.exp()[:, None]).sin().square() / (self.beta.exp()[:, None] + 1e-9)


class ResidualUnit(nn.Sequential):
    """x plus two convolutions of x."""

    def __init__(self, channels: int, dilation: int, *, snake: bool) -> None:
        wide = _conv(channels, channels, 7, padding=3 * dilation, dilation=dilation)
        super().__init__(_act(channels, snake), wide, _act(channels, snake), _conv(channels, channels, 1))

    def forward(self, input: Float[Tensor, "b c t"]) -> Float[Tensor, "b c t"]:
        return input + super().forward(input)


class Encoder(nn.Sequential):
    """Audio [b, c, t], in whole frames, to vectors [b, out, f]."""

    def __init__(self, strides: Sequence[int], widths: Sequence[int], *, snake: bool, channels: int, out: int) -> None:
        layers: list[nn.Module] = [_conv(channels, widths[0], 7, padding=3)]
        for stride, before, after in zip(strides, widths, widths[1:], strict=False):
            down = _conv(before, after, 2 * stride, stride=stride, padding=-(-stride // 2))
            layers.append(nn.Sequential(*_residuals(before, snake), _act(before, snake), down))
        super().__init__(*layers, _act(widths[-1], snake), _conv(widths[-1], out, 3, padding=1))


class Decoder(nn.Sequential):
    """Vectors [b, latent, f] to audio, a few samples short with odd strides; `nearest` upsamples by repetition."""

    def __init__(
        self,
        strides: Sequence[int],
        widths: Sequence[int],
        *,
        snake: bool,
        channels: int,
        latent: int,
        nearest: bool,
        tanh: bool,
    ) -> None:
        widths = widths[::-1]
        layers: list[nn.Module] = [_conv(latent, widths[0], 7, padding=3)]
        for stride, before, after in zip(strides[::-1], widths, widths[1:], strict=False):
            up = _upsample(before, after, stride, nearest=nearest)
            layers.append(nn.Sequential(_act(before, snake), up, *_residuals(after, snake)))
        last = _conv(widths[-1], channels, 7, padding=3, bias=False)
        super().__init__(*layers, _act(widths[-1], snake), last, nn.Tanh() if tanh else nn.Identity())


def _residuals(channels: int, snake: bool) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation, snake=snake) for dilation in _DILATIONS]


def _act(channels: int, snake: bool) -> nn.Module:
    return Snake(channels) if snake else nn.ELU()


def _conv(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Module:
    return weight_norm(nn.Conv1d(inputs, outputs, kernel, **options))  # type: ignore[arg-type]


def _upsample(inputs: int, outputs: int, stride: int, *, nearest: bool) -> nn.Module:
    if not nearest:
        return weight_norm(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride, padding=-(-stride // 2)))
    conv = weight_norm(nn.Conv1d(inputs, outputs, 2 * stride, padding="same", bias=False))
    return nn.Sequential(nn.Upsample(scale_factor=stride, mode="nearest"), conv)
