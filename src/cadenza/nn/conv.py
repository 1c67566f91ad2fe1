"""Convolutions over time with EnCodec's padding (Défossez et al. 2022), and their states for streaming.

A `StreamState` belongs to one stream: each causal layer stores under itself the samples that the next chunk needs.
"""

import copy
import math
from collections.abc import Callable
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
    """Options that all convolutions of a network share."""

    causal: bool = False
    norm: Norm = "weight_norm"
    pad_mode: PadMode = "reflect"
    trim_right: float = 1.0  # share of a causal transposed convolution's surplus that is removed at the end


class Conv1d(nn.Module):
    """A padded convolution with ceil(t / stride) output frames; raises ValueError if the kernel is below the stride."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, dilation: int = 1, style: ConvConfig = ConvConfig()
    ) -> None:
        super().__init__()
        self.stride, self.style = stride, style
        self.padding = (kernel - 1) * dilation + 1 - stride  # input samples of one output, less the stride
        if self.padding < 0:
            raise ValueError(f"kernel {kernel} with dilation {dilation} is smaller than the stride {stride}")
        self.conv = _prepare_conv(nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation), inputs * kernel, style)
        self.norm = _output_norm(outputs, style)

    def forward(self, x: Float[Tensor, "b i t"], state: StreamState | None = None) -> Float[Tensor, "b o f"]:
        if state is not None:
            return self.norm(self.conv(self._continue(x, state)))
        extra = -x.shape[-1] % self.stride  # fills the last frame
        right = 0 if self.style.causal else self.padding // 2
        x = pad1d(x, self.padding - right, right + extra, self.style.pad_mode)
        return self.norm(self.conv(x))

    def _continue(self, x: Tensor, state: StreamState) -> Tensor:
        assert self.style.causal and self.stride == 1, "only causal convolutions of stride 1 can be streamed"
        if self.padding == 0:
            return x
        past = state.get(self)
        x = pad1d(x, self.padding, 0, self.style.pad_mode) if past is None else torch.cat([past, x], -1)
        state[self] = x[..., x.shape[-1] - self.padding :].clone()  # a view would keep all of x in memory
        return x


class ConvTranspose1d(nn.Module):
    """A transposed convolution with exactly f * stride output samples."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, style: ConvConfig = ConvConfig()) -> None:
        super().__init__()
        self.stride, self.style, self.surplus = stride, style, kernel - stride
        self.conv = _prepare_conv(nn.ConvTranspose1d(inputs, outputs, kernel, stride), inputs * kernel / stride, style)
        self.norm = _output_norm(outputs, style)

    def forward(self, x: Float[Tensor, "b i f"], state: StreamState | None = None) -> Float[Tensor, "b o t"]:
        if state is not None:
            return self.norm(self._continue(x, state))
        y = self.norm(self.conv(x))
        right = math.ceil(self.surplus * self.style.trim_right) if self.style.causal else self.surplus // 2
        return y[..., self.surplus - right : y.shape[-1] - right]

    def _continue(self, x: Tensor, state: StreamState) -> Tensor:
        assert self.style.causal and self.style.trim_right == 1.0, "this transposed convolution cannot be streamed"
        y = self.conv(x)
        past = state.get(self)
        if past is not None:
            y = torch.cat([y[..., : self.surplus] + past, y[..., self.surplus :]], -1)
        done = x.shape[-1] * self.stride
        state[self] = y[..., done:] - self.conv.bias[:, None]  # the next chunk adds the bias again
        return y[..., :done]


class ResidualLSTM(nn.Module):
    """x plus a causal LSTM of x over time."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, layers)

    def forward(self, x: Float[Tensor, "b d f"], state: StreamState | None = None) -> Float[Tensor, "b d f"]:
        past, frames = None if state is None else state.get(self), x.permute(2, 0, 1)
        stepwise = state is not None and x.device.type == "cpu" and isinstance(self.lstm, nn.LSTM)
        y, last = self._steps(frames, past) if stepwise else self.lstm(frames, past)
        if state is not None:
            state[self] = last
        return x + y.permute(1, 2, 0)

    def _steps(self, x: Float[Tensor, "f b d"], past: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the LSTM frame by frame: for few frames twice as fast as oneDNN, which repacks its weights at each call."""
        states = []
        for layer in range(self.lstm.num_layers):
            input_weight, recurrent_weight, *biases = self.lstm.all_weights[layer]
            h, c = x.new_zeros(2, *x.shape[1:]) if past is None else (past[0][layer], past[1][layer])
            x, state = run_lstm_cells(F.linear(x, input_weight, biases[0] + biases[1]), recurrent_weight, h, c)
            states.append(state)
        h, c = zip(*states, strict=True)
        return x, (torch.stack(h), torch.stack(c))


def run_lstm_cells(
    gates: Float[Tensor, "f b g"], weight: Float[Tensor, "g d"], h: Float[Tensor, "b d"], c: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, "f b d"], tuple[Tensor, Tensor]]:
    """Return the outputs of an LSTM layer and its last hidden and cell state; `gates` are the projected inputs."""
    outputs = []
    for frame_gates in gates:
        input_gate, forget, cell, output_gate = (frame_gates + F.linear(h, weight)).chunk(4, -1)
        c = forget.sigmoid() * c + input_gate.sigmoid() * cell.tanh()
        h = output_gate.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h, c)


class TimeGroupNorm(nn.GroupNorm):
    """Normalise all channels and samples of a clip together; unlike torch's, also for a single value."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, input: Float[Tensor, "b o t"]) -> Float[Tensor, "b o t"]:
        return torch.group_norm(input, 1, self.weight, self.bias, self.eps)


def pad1d(x: Float[Tensor, "b c t"], left: int, right: int, mode: PadMode) -> Float[Tensor, "b c u"]:
    """Pad in time; a clip too short to be reflected is extended by zeros first."""
    if left == right == 0:
        return x
    if mode != "reflect":
        return F.pad(x, (left, right), mode)
    short = max(max(left, right) + 1 - x.shape[-1], 0)
    x = F.pad(F.pad(x, (0, short)), (left, right), "reflect")
    return x[..., : x.shape[-1] - short]


def remove_weight_norm_(module: nn.Module) -> None:
    """Replace weight-normalised convolutions in place by plain ones with the same weights."""
    for parent in list(module.modules()):
        for name, part in parent.named_children():
            if _is_weight_normed(part):
                setattr(parent, name, _plain_conv(part))


def without_weight_norm(module: M) -> M:
    """Return a copy for inference without weight norm, whose weights are then computed once; other tensors are shared."""
    return copy_with(module, lambda part: _plain_conv(part) if _is_weight_normed(part) else None)


def copy_with(module: Any, replace: Callable[[Any], nn.Module | None]) -> Any:
    """Return a copy that shares all tensors, with the submodules that `replace` returns a module for replaced."""
    if (replacement := replace(module)) is not None:
        return replacement
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._modules = {name: None if part is None else copy_with(part, replace) for name, part in module._modules.items()}
    return twin


def _is_weight_normed(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and is_parametrized(module)


def _plain_conv(conv: Any) -> Any:
    kind: Any = nn.ConvTranspose1d if conv.transposed else nn.Conv1d
    sizes = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride
    plain = kind(*sizes, dilation=conv.dilation, device="meta")
    direction = conv.parametrizations.weight.original1
    weight = direction if direction.is_meta else conv.weight  # which would import torch's compiler on the meta device
    plain.weight, plain.bias = nn.Parameter(weight.detach(), requires_grad=False), conv.bias
    return plain


def _prepare_conv(conv: Any, inputs: float, style: ConvConfig) -> Any:
    """Initialise weights that keep the variance of `inputs` inputs (torch's default reduces it), and normalise them."""
    nn.init.normal_(conv.weight, std=inputs**-0.5)
    nn.init.zeros_(conv.bias)
    return weight_norm(conv) if style.norm == "weight_norm" else conv


def _output_norm(channels: int, style: ConvConfig) -> nn.Module:
    return TimeGroupNorm(channels) if style.norm == "time_group_norm" else nn.Identity()
