"""Convolutions over time with EnCodec's padding (Défossez et al. 2022), and their states for streaming.

A `Carried` belongs to one stream: each causal layer keeps under itself what the next chunk needs.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

M = TypeVar("M", bound=nn.Module)
Norm = Literal["weight_norm", "time_group_norm", "none"]
PadMode = Literal["constant", "reflect", "replicate"]
StreamState = dict[nn.Module, Any]


@dataclass(frozen=True)
class ConvConfig:
    """What all convolutions of one network share."""

    causal: bool = False
    norm: Norm = "weight_norm"
    pad_mode: PadMode = "reflect"
    trim_right: float = 1.0  # share of a causal transposed convolution's surplus that is cut at the end


class Conv1d(nn.Module):
    """A convolution whose output has ceil(t / stride) frames."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, dilation: int = 1, style: ConvConfig = ConvConfig()
    ) -> None:
        super().__init__()
        self.stride = stride
        self.style = style
        self.reach = (kernel - 1) * dilation + 1  # input samples that one output sees
        self.padding = self.reach - stride
        if self.padding < 0:
            raise ValueError(f"kernel {kernel} with dilation {dilation} must reach over its stride {stride}")
        conv = _even(nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation), inputs * kernel)
        self.conv = _weight_normed(conv, style)
        self.norm = _output_norm(outputs, style)

    def forward(self, x: Float[Tensor, "b i t"], carried: StreamState | None = None) -> Float[Tensor, "b o f"]:
        if carried is not None:
            return self.norm(self.conv(self._continue(x, carried)))
        extra = -x.shape[-1] % self.stride  # fills the last frame
        right = 0 if self.style.causal else self.padding // 2
        x = pad1d(x, self.padding - right, right + extra, self.style.pad_mode)
        return self.norm(self.conv(x))

    def _continue(self, x: Tensor, carried: StreamState) -> Tensor:
        assert self.style.causal and self.stride == 1, "only causal convolutions of stride 1 can be streamed"
        if self.padding == 0:
            return x
        past = carried.get(self)
        x = pad1d(x, self.padding, 0, self.style.pad_mode) if past is None else torch.cat([past, x], -1)
        carried[self] = x[..., x.shape[-1] - self.padding :].clone()  # a view would keep all of x
        return x


class ConvTranspose1d(nn.Module):
    """A transposed convolution whose output has exactly f times stride samples."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, style: ConvConfig = ConvConfig()) -> None:
        super().__init__()
        self.stride = stride
        self.style = style
        self.surplus = kernel - stride
        conv = _even(nn.ConvTranspose1d(inputs, outputs, kernel, stride), inputs * kernel / stride)
        self.conv = _weight_normed(conv, style)
        self.norm = _output_norm(outputs, style)

    def forward(self, x: Float[Tensor, "b i f"], carried: StreamState | None = None) -> Float[Tensor, "b o t"]:
        if carried is not None:
            return self.norm(self._continue(x, carried))
        y = self.norm(self.conv(x))
        right = math.ceil(self.surplus * self.style.trim_right) if self.style.causal else self.surplus // 2
        return y[..., self.surplus - right : y.shape[-1] - right]

    def _continue(self, x: Tensor, carried: StreamState) -> Tensor:
        assert self.style.causal and self.style.trim_right == 1.0, "this transposed convolution cannot be streamed"
        y = self.conv(x)
        past = carried.get(self)
        if past is not None:
            y = torch.cat([y[..., : self.surplus] + past, y[..., self.surplus :]], -1)
        done = x.shape[-1] * self.stride
        carried[self] = y[..., done:] - self.conv.bias[:, None]  # the next chunk adds the bias again
        return y[..., :done]


class ResidualLSTM(nn.Module):
    """x plus an LSTM over time of x; runs forward in time only."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, layers)

    def forward(self, x: Float[Tensor, "b d f"], carried: StreamState | None = None) -> Float[Tensor, "b d f"]:
        past, frames = None if carried is None else carried.get(self), x.permute(2, 0, 1)
        apart = carried is not None and x.device.type == "cpu" and isinstance(self.lstm, nn.LSTM)
        y, state = self._steps(frames, past) if apart else self.lstm(frames, past)
        if carried is not None:
            carried[self] = state
        return x + y.permute(1, 2, 0)

    def _steps(self, x: Float[Tensor, "f b d"], past: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The LSTM in half the time for a few frames: oneDNN's lays its weights out anew at each call."""
        ends = []
        for layer in range(self.lstm.num_layers):
            inward, again, *biases = self.lstm.all_weights[layer]
            h, c = x.new_zeros(2, *x.shape[1:]) if past is None else (past[0][layer], past[1][layer])
            outputs = []
            for gates in F.linear(x, inward, biases[0] + biases[1]):
                gates_in, forget, new, out = (gates + F.linear(h, again)).chunk(4, -1)
                c = forget.sigmoid() * c + gates_in.sigmoid() * new.tanh()
                h = out.sigmoid() * c.tanh()
                outputs.append(h)
            x = torch.stack(outputs)
            ends.append((h, c))
        h, c = zip(*ends, strict=True)
        return x, (torch.stack(h), torch.stack(c))


class TimeGroupNorm(nn.GroupNorm):
    """All channels and samples of a clip normalised together, be it a single value (torch's own refuses that)."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, input: Float[Tensor, "b o t"]) -> Float[Tensor, "b o t"]:
        return torch.group_norm(input, 1, self.weight, self.bias, self.eps)


def pad1d(x: Float[Tensor, "b c t"], left: int, right: int, mode: PadMode) -> Float[Tensor, "b c u"]:
    """`x` padded in time; to be reflected, a clip shorter than the padding first gets zeros at its end."""
    if left == right == 0:
        return x
    if mode != "reflect":
        return F.pad(x, (left, right), mode)
    short = max(max(left, right) + 1 - x.shape[-1], 0)
    x = F.pad(F.pad(x, (0, short)), (left, right), "reflect")
    return x[..., : x.shape[-1] - short]


def remove_weight_norm_(module: nn.Module) -> None:
    """Takes weight norm out of a module, in place: it keeps the weights that this makes."""
    for above in list(module.modules()):
        for name, part in above.named_children():
            if isinstance(part, nn.Conv1d | nn.ConvTranspose1d) and is_parametrized(part):
                setattr(above, name, _bare(part))


def without_weight_norm(module: M) -> M:
    """A twin of the module for inference, without weight norm: what is normalised is computed once, not at each call."""
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        return _bare(module) if is_parametrized(module) else module  # type: ignore[return-value]
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._modules = {name: None if part is None else without_weight_norm(part) for name, part in module._modules.items()}
    return twin


def _bare(conv: Any) -> Any:
    kind = nn.ConvTranspose1d if isinstance(conv, nn.ConvTranspose1d) else nn.Conv1d
    shape: Any = {"kernel_size": conv.kernel_size, "stride": conv.stride, "dilation": conv.dilation}
    bare = kind(conv.in_channels, conv.out_channels, **shape, device="meta")
    normed: Any = conv.parametrizations.weight  # type: ignore[union-attr]
    weight = normed.original1 if normed.original1.is_meta else conv.weight  # for which torch would load its compiler there
    bare.weight, bare.bias = nn.Parameter(weight.detach(), requires_grad=False), conv.bias
    return bare


def _even(conv: Any, seen: float) -> Any:
    """The convolution with weights that keep the variance of `seen` inputs; torch's default shrinks it at every layer."""
    nn.init.normal_(conv.weight, std=seen**-0.5)
    nn.init.zeros_(conv.bias)
    return conv


def _weight_normed(conv: Any, style: ConvConfig) -> Any:
    return weight_norm(conv) if style.norm == "weight_norm" else conv


def _output_norm(channels: int, style: ConvConfig) -> nn.Module:
    return TimeGroupNorm(channels) if style.norm == "time_group_norm" else nn.Identity()
