"""Padding and states of convolutions, against their definitions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cadenza.nn.conv import (
    Conv1d,
    ConvConfig,
    ConvTranspose1d,
    ResidualLSTM,
    StreamState,
    TimeGroupNorm,
    pad1d,
    without_weight_norm,
)

CAUSAL = ConvConfig(causal=True, norm="none", pad_mode="constant")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pad_mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(7, 1, 1), (3, 1, 4), (8, 4, 1), (10, 5, 1), (1, 1, 1)])
def test_every_length_gives_full_frames(causal: bool, pad_mode: str, kernel: int, stride: int, dilation: int) -> None:
    style = ConvConfig(causal, "none", pad_mode)  # type: ignore[arg-type]
    conv = Conv1d(2, 3, kernel=kernel, stride=stride, dilation=dilation, style=style)
    for t in range(1, 30):
        assert conv(torch.randn(1, 2, t)).shape == (1, 3, math.ceil(t / stride))


def test_reflection_of_a_short_clip_pads_zeros_first() -> None:
    x = torch.tensor([[[1.0, 2.0]]])
    assert pad1d(x, 3, 0, "reflect").tolist() == [[[0.0, 0.0, 2.0, 1.0, 2.0]]]
    assert pad1d(x, 1, 1, "reflect").tolist() == [[[2.0, 1.0, 2.0, 1.0]]]


def test_causal_convolution_equals_left_padding() -> None:
    conv = Conv1d(2, 3, kernel=5, dilation=2, style=CAUSAL)
    x = torch.randn(2, 2, 40)
    expected = F.conv1d(F.pad(x, (8, 0)), conv.conv.weight, conv.conv.bias, dilation=2)
    torch.testing.assert_close(conv(x), expected)


def test_causal_convolution_does_not_depend_on_later_samples() -> None:
    conv = Conv1d(1, 1, kernel=8, stride=4, style=CAUSAL)
    x = torch.randn(1, 1, 40, requires_grad=True)
    conv(x)[0, 0, 5].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].nonzero()[:, 0]
    assert seen.max() == 23 and seen.min() == 16  # frame 5 ends with sample 23


@pytest.mark.parametrize("causal", [True, False])
def test_transposed_convolution_gives_stride_samples_a_frame(causal: bool) -> None:
    style = ConvConfig(causal, "none", "constant")
    conv = ConvTranspose1d(2, 3, kernel=10, stride=5, style=style)
    x = torch.randn(2, 2, 7)
    whole = F.conv_transpose1d(x, conv.conv.weight, conv.conv.bias, stride=5)
    start = 0 if causal else 3
    torch.testing.assert_close(conv(x), whole[..., start : start + 35])


@pytest.mark.parametrize("pad_mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("norm", ["weight_norm", "none"])
def test_chunks_of_a_stream_equal_the_whole(pad_mode: str, norm: str) -> None:
    torch.manual_seed(0)
    style = ConvConfig(True, norm, pad_mode)  # type: ignore[arg-type]
    layers: list[nn.Module] = [
        Conv1d(3, 4, kernel=7, dilation=2, style=style),
        ConvTranspose1d(4, 4, kernel=6, stride=3, style=style),
        ResidualLSTM(4, 2),
        Conv1d(4, 2, kernel=1, style=style),
    ]
    for layer in layers:
        nn.init.normal_(getattr(layer, "conv", nn.Linear(1, 1)).bias)  # a bias counted twice would show
    x = torch.randn(2, 3, 41)
    whole, carried, chunks = x, StreamState(), []
    for layer in layers:
        whole = layer(whole)
    for chunk in x.split([13, 1, 1, 2, 9, 15], -1):
        for layer in layers:
            chunk = layer(chunk, carried)  # noqa: PLW2901
        chunks.append(chunk)
    torch.testing.assert_close(torch.cat(chunks, -1), whole, atol=1e-5, rtol=1e-5)


def test_group_norm_is_over_channels_and_time() -> None:
    for causal in (False, True):  # the padding alone is causal then
        conv = Conv1d(2, 4, kernel=3, style=ConvConfig(causal, norm="time_group_norm"))
        y = conv(torch.randn(3, 2, 50) * 7.0 + 3.0)
        torch.testing.assert_close(y.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(y.var((1, 2), correction=0), torch.ones(3), atol=1e-3, rtol=0.0)


def test_initial_weights_keep_the_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 600)
    for layer in (Conv1d(64, 64, kernel=7, style=CAUSAL), ConvTranspose1d(64, 64, kernel=16, stride=8, style=CAUSAL)):
        assert 0.8 < layer(x).std() < 1.25


def test_time_group_norm_equals_torch_and_accepts_a_single_value() -> None:
    norm, torchs = TimeGroupNorm(3), torch.nn.GroupNorm(1, 3)
    for layer in (norm, torchs):
        torch.nn.init.constant_(layer.weight, 2.0)
        torch.nn.init.constant_(layer.bias, 0.5)
    x = torch.randn(2, 3, 7)
    torch.testing.assert_close(norm(x), torchs(x))
    assert norm.state_dict().keys() == torchs.state_dict().keys()
    assert TimeGroupNorm(1)(torch.ones(1, 1, 1)).item() == 0.0


def test_removing_weight_norm_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    style = ConvConfig(causal=True)
    layers = nn.Sequential(
        Conv1d(3, 4, kernel=5, dilation=2, style=style), ConvTranspose1d(4, 2, kernel=6, stride=3, style=style),
        Conv1d(2, 2, kernel=1, style=CAUSAL), ResidualLSTM(2, 1),
    )  # fmt: skip
    twin, x = without_weight_norm(layers), torch.randn(2, 3, 20)
    torch.testing.assert_close(twin(x), layers(x))
    assert not any("parametrizations" in name for name, _ in twin.named_parameters())
    assert sum("parametrizations" in name for name, _ in layers.named_parameters()) == 4, "the module itself is left as it is"
    assert twin[2].conv is layers[2].conv and twin[3].lstm is layers[3].lstm, "what has no norm is not copied"
    assert twin[0].conv.bias is layers[0].conv.bias
    weight = layers[0].conv.parametrizations.weight
    torch.testing.assert_close(
        twin[0].conv.weight, weight.original0 * weight.original1 / weight.original1.norm(dim=(1, 2), keepdim=True)
    )
