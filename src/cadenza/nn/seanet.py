"""SEANet, the convolutional encoder and decoder of SoundStream and EnCodec (Tagliasacchi et al. 2020)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.nn.conv import Conv1d, ConvConfig, ConvTranspose1d, ResidualLSTM, StreamState


@dataclass(frozen=True)
class SeanetConfig:
    """Sizes that an encoder and its decoder share.

    `strides` are in the order of the decoder; `widths` are the channels from the sample rate to the frame rate, one more
    than the strides; `residual_layers` are the residual units at each rate but the last.
    """

    channels: int
    dimension: int
    strides: Sequence[int]
    widths: Sequence[int]
    residual_layers: Sequence[int]
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    dilation_base: int = 2
    compress: int = 2
    conv_shortcut: bool = True
    lstm_layers: int = 0
    style: ConvConfig = field(default_factory=ConvConfig)

    def residuals(self, level: int) -> list[nn.Module]:
        dilations = [self.dilation_base**j for j in range(self.residual_layers[level])]
        return [ResidualUnit(self.widths[level], shape=self, dilation=dilation) for dilation in dilations]

    def make_lstm(self) -> list[nn.Module]:
        return [ResidualLSTM(self.widths[-1], self.lstm_layers)] if self.lstm_layers else []


class Activation(nn.Module):
    """ELU."""

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return F.elu(x)


class StreamingSequential(nn.Module):
    """Layers in sequence that share the state of a stream."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, state)
        return x


class ResidualUnit(nn.Module):
    """x, or a 1x1 convolution of it, plus a dilated bottleneck of x."""

    def __init__(self, dim: int, *, shape: SeanetConfig, dilation: int) -> None:
        super().__init__()
        hidden = dim // shape.compress
        self.block = StreamingSequential([
            Activation(),
            Conv1d(dim, hidden, kernel=shape.residual_kernel, dilation=dilation, style=shape.style),
            Activation(),
            Conv1d(hidden, dim, kernel=1, style=shape.style),
        ])  # fmt: skip
        self.shortcut = Conv1d(dim, dim, kernel=1, style=shape.style) if shape.conv_shortcut else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x, state)) + self.block(x, state)


class Encoder(StreamingSequential):
    """Audio [b, c, t] to one vector per frame [b, d, f] of prod(strides) samples; the last frame is padded."""

    def __init__(self, shape: SeanetConfig) -> None:
        widths = shape.widths
        layers: list[nn.Module] = [Conv1d(shape.channels, widths[0], kernel=shape.kernel, style=shape.style)]
        for level, stride in enumerate(reversed(shape.strides)):
            layers += [*shape.residuals(level), Activation()]
            layers += [Conv1d(widths[level], widths[level + 1], kernel=2 * stride, stride=stride, style=shape.style)]
        layers += [*shape.make_lstm(), Activation()]
        layers += [Conv1d(widths[-1], shape.dimension, kernel=shape.last_kernel, style=shape.style)]
        super().__init__(layers)


class Decoder(StreamingSequential):
    """One vector per frame [b, d, f] to prod(strides) samples of audio [b, c, t]."""

    def __init__(self, shape: SeanetConfig) -> None:
        widths, style = shape.widths, shape.style
        layers: list[nn.Module] = [Conv1d(shape.dimension, widths[-1], kernel=shape.kernel, style=style)]
        layers += shape.make_lstm()
        for level, stride in reversed(list(enumerate(reversed(shape.strides)))):
            up = ConvTranspose1d(widths[level + 1], widths[level], kernel=2 * stride, stride=stride, style=style)
            layers += [Activation(), up, *shape.residuals(level)]
        layers += [Activation(), Conv1d(widths[0], shape.channels, kernel=shape.last_kernel, style=style)]
        super().__init__(layers)


def min_first_chunk_frames(shape: SeanetConfig) -> int:
    """Return the frames that the first chunk of a stream needs, so that reflect padding has its samples."""
    if shape.style.pad_mode != "reflect":
        return 1
    need, rate = shape.kernel, 1
    for stride, layers in zip(shape.strides, reversed(shape.residual_layers), strict=True):
        rate *= stride
        reach = (shape.residual_kernel - 1) * shape.dilation_base ** max(layers - 1, 0)
        need = max(need, math.ceil((reach + 1) / rate))
    return max(need, math.ceil(shape.last_kernel / rate))


def peak_activations_per_frame(shape: SeanetConfig) -> int:
    """Return the peak number of activations of a decoder per frame.

    These are five copies of its widest layer: input, shortcut, block input, padded input and the convolution's layout.
    """
    rates = [math.prod(shape.strides[: len(shape.strides) - level]) for level in range(len(shape.widths))]
    return 5 * max(width * rate for width, rate in zip(shape.widths, rates, strict=True))
