"""SEANet, the convolutional encoder and decoder of SoundStream and EnCodec (Tagliasacchi et al. 2020)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.nn.conv import Carried, Conv1d, ConvStyle, ConvTranspose1d, ResidualLSTM


@dataclass(frozen=True)
class Seanet:
    """The shape that an encoder and its decoder share; `strides` in the order of the decoder."""

    channels: int
    dimension: int
    strides: Sequence[int]
    filters: int = 32
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    conv_shortcut: bool = True
    lstm_layers: int = 0
    style: ConvStyle = field(default_factory=ConvStyle)

    def residuals(self, dim: int) -> list[nn.Module]:
        dilations = [self.dilation_base**j for j in range(self.residual_layers)]
        return [Residual(dim, shape=self, dilation=dilation) for dilation in dilations]

    def memory(self) -> list[nn.Module]:
        return [ResidualLSTM(self.width, self.lstm_layers)] if self.lstm_layers else []

    @property
    def width(self) -> int:
        """Channels at the frame rate."""
        return self.filters * 2 ** len(self.strides)


class Activation(nn.Module):
    """ELU."""

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        return F.elu(x)


class Stack(nn.Module):
    """Layers one after another, each given the stream's state."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, carried)
        return x


class Residual(nn.Module):
    """x, or a 1x1 convolution of it, plus a dilated bottleneck of x."""

    def __init__(self, dim: int, *, shape: Seanet, dilation: int) -> None:
        super().__init__()
        hidden = dim // shape.compress
        self.block = Stack([
            Activation(),
            Conv1d(dim, hidden, kernel=shape.residual_kernel, dilation=dilation, style=shape.style),
            Activation(),
            Conv1d(hidden, dim, kernel=1, style=shape.style),
        ])  # fmt: skip
        self.shortcut = Conv1d(dim, dim, kernel=1, style=shape.style) if shape.conv_shortcut else None

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x, carried)) + self.block(x, carried)


class Encoder(Stack):
    """A wave to one vector a frame of prod(strides) samples, the last frame filled by padding."""

    def __init__(self, shape: Seanet) -> None:
        width = shape.filters
        layers: list[nn.Module] = [Conv1d(shape.channels, width, kernel=shape.kernel, style=shape.style)]
        for stride in reversed(shape.strides):
            layers += [*shape.residuals(width), Activation()]
            layers += [Conv1d(width, 2 * width, kernel=2 * stride, stride=stride, style=shape.style)]
            width *= 2
        layers += [*shape.memory(), Activation()]
        layers += [Conv1d(width, shape.dimension, kernel=shape.last_kernel, style=shape.style)]
        super().__init__(layers)

    def forward(self, x: Float[Tensor, "b c t"], carried: Carried | None = None) -> Float[Tensor, "b d f"]:
        return super().forward(x, carried)


class Decoder(Stack):
    """One vector a frame to prod(strides) samples of wave a frame."""

    def __init__(self, shape: Seanet) -> None:
        width = shape.width
        layers: list[nn.Module] = [Conv1d(shape.dimension, width, kernel=shape.kernel, style=shape.style)]
        layers += shape.memory()
        for stride in shape.strides:
            layers += [Activation(), ConvTranspose1d(width, width // 2, kernel=2 * stride, stride=stride, style=shape.style)]
            width //= 2
            layers += shape.residuals(width)
        layers += [Activation(), Conv1d(width, shape.channels, kernel=shape.last_kernel, style=shape.style)]
        super().__init__(layers)

    def forward(self, x: Float[Tensor, "b d f"], carried: Carried | None = None) -> Float[Tensor, "b c t"]:
        return super().forward(x, carried)


def first_chunk(shape: Seanet) -> int:
    """Frames that a stream must start with so that reflected padding sees in them all that it mirrors."""
    if shape.style.pad_mode != "reflect":
        return 1
    need = shape.kernel
    rate = 1
    for stride in shape.strides:
        rate *= stride
        reach = (shape.residual_kernel - 1) * shape.dilation_base ** max(shape.residual_layers - 1, 0)
        need = max(need, math.ceil((reach + 1) / rate))
    return max(need, math.ceil(shape.last_kernel / rate))
