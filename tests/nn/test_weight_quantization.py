"""Quantised linear layers, compared with their dequantised weights and the original layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cadenza.core.errors import CheckpointError, RequestError
from cadenza.nn.kernels import cpu_kernel_unavailable_reason
from cadenza.nn.weight_quantization import (
    KINDS,
    QuantizedLinear,
    QuantizedLSTM,
    int4_group_size,
    prepare_for_checkpoint,
    quantization_of,
    quantize_linears,
    quantize_lstms,
)


def test_the_cpu_kernel_is_available() -> None:
    assert cpu_kernel_unavailable_reason() is None


SHAPES = [(64, 64), (96, 100), (32, 1), (1088, 70)]


def _linear(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    rng = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    linear.weight.data = torch.randn(outputs, inputs, generator=rng)
    if bias:
        linear.bias.data = torch.randn(outputs, generator=rng)
    return linear.requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_within_half_a_step_of_each_weight(shape: tuple[int, int]) -> None:
    linear = _linear(*shape)
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    error = (QuantizedLinear.from_linear(linear, "int8").dequantize() - linear.weight).abs()
    assert (error <= step * 0.501).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_within_a_step_of_each_weight_but_the_outermost(shape: tuple[int, int]) -> None:
    linear = _linear(*shape)
    groups = linear.weight.view(shape[1], -1, int4_group_size(shape[0]))
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (QuantizedLinear.from_linear(linear, "int4").dequantize() - linear.weight).view_as(groups)
    assert (error.square().mean(-1).sqrt() <= step * 0.35).all()  # sqrt(1/12) = 0.29 steps where nothing is cut


@pytest.mark.parametrize("kind", KINDS)
def test_representable_weights_are_exact(kind: str) -> None:
    linear = _linear(64, 64)
    numbers = torch.randint(0, 16, (64, 64), generator=torch.Generator().manual_seed(1)) - 8
    numbers[:, 0], numbers[:, 1] = -8, 7
    linear.weight.data = numbers / 8 if kind == "int4" else (numbers * 127 // 8).clamp(-127, 127) / 128
    if kind == "int8":
        linear.weight.data[:, 0] = -127 / 128
    assert torch.equal(QuantizedLinear.from_linear(linear, kind).dequantize(), linear.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_product_equals_the_dequantised_weights(kind: str, shape: tuple[int, int], rows: int) -> None:
    layer = QuantizedLinear.from_linear(_linear(*shape), kind)
    x = torch.randn(rows, shape[0], generator=torch.Generator().manual_seed(2))
    wanted = F.linear(x.double(), layer.dequantize().double(), layer.bias.double())
    assert (layer(x) - wanted).norm() < 1e-4 * wanted.norm()  # inputs have 16 bits


def test_an_input_of_zeros_gives_the_bias() -> None:
    layer = QuantizedLinear.from_linear(_linear(64, 10), "int4")
    assert torch.equal(layer(torch.zeros(2, 64)), layer.bias.expand(2, -1))


@pytest.mark.parametrize("rows", [7, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind: str, rows: int) -> None:
    layer = QuantizedLinear.from_linear(_linear(128, 200), kind)
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(3))
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


def test_worst_case_numbers_do_not_overflow() -> None:
    linear = nn.Linear(4096, 64, bias=False)
    linear.weight.data.fill_(1.0)
    out = QuantizedLinear.from_linear(linear, "int8")(torch.ones(1, 4096))
    assert torch.allclose(out, torch.full_like(out, 4096.0), rtol=1e-4)


def test_quantize_and_fit() -> None:
    made = nn.Sequential(_linear(64, 64), nn.GELU(), nn.Sequential(_linear(64, 32, seed=1)), nn.LayerNorm(32))
    quantize_linears(made, "int4", int8_only=("2.0",))
    assert [part.kind for part in made.modules() if isinstance(part, QuantizedLinear)] == ["int4", "int8"]
    assert quantization_of(made) == "int4"
    other = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Sequential(nn.Linear(64, 32)), nn.LayerNorm(32))
    prepare_for_checkpoint(other, made.state_dict())
    other.load_state_dict(made.state_dict())
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(made(x), other(x))


def test_casting_leaves_the_numbers_and_their_scales() -> None:
    layer = QuantizedLinear.from_linear(_linear(64, 64), "int4")
    before = layer.dequantize()
    assert torch.equal(layer.to(torch.bfloat16).dequantize(), before)
    assert layer(torch.ones(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_bad_input_is_named() -> None:
    with pytest.raises(
        RequestError, match=r"0: int4 needs layers whose number of inputs is a multiple of 32 or 64.*has 20; use int8"
    ):
        quantize_linears(nn.Sequential(nn.Linear(20, 8)), "int4")
    with pytest.raises(CheckpointError, match="has no linear layer 'b'"):
        prepare_for_checkpoint(nn.Sequential(nn.Linear(4, 4)), {"b.packed": torch.zeros(1, dtype=torch.int8)})


def _lstm() -> nn.LSTM:
    torch.manual_seed(5)
    lstm = nn.LSTM(24, 24, 2).requires_grad_(False)
    for weight in lstm.parameters():
        weight.mul_(2.5)  # so that its gates open and shut
    return lstm


@pytest.mark.parametrize("compiled", [True, False])
def test_an_lstm_is_that_of_its_weights_written_out(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, x = _lstm(), torch.randn(70, 3, 24, generator=torch.Generator().manual_seed(6))
    made = QuantizedLSTM(wide)
    for layer, (inward, again) in enumerate(zip(made.input_proj, made.recurrent_proj, strict=True)):
        assert (wide.all_weights[layer][0] - inward.dequantize()).norm() < 0.01 * inward.dequantize().norm()
        wide.all_weights[layer][0].copy_(inward.dequantize())
        wide.all_weights[layer][1].copy_(again.dequantize())
    if not compiled:
        monkeypatch.setattr("cadenza.nn.weight_quantization.cpu_kernel_unavailable_reason", lambda: "it is not there")
    wanted, ends = wide(x)
    got, found = made(x)
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)
    for mine, theirs in zip(found, ends, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)


def test_an_lstm_goes_on_where_it_ended() -> None:
    made, x = QuantizedLSTM(_lstm()), torch.randn(30, 2, 24, generator=torch.Generator().manual_seed(7))
    whole, end = made(x)
    first, state = made(x[:11])
    second, last = made(x[11:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(last, end, strict=True))


def test_gates_that_are_far_open_do_not_overflow() -> None:
    lstm = _lstm()
    lstm.bias_ih_l0.fill_(500.0)
    out, _ = QuantizedLSTM(lstm)(torch.ones(3, 1, 24))
    assert out.isfinite().all()


def test_lstms_are_narrowed_in_place() -> None:
    made, other = (nn.Sequential(_lstm(), _linear(24, 8)) for _ in range(2))
    quantize_lstms(made)
    quantize_lstms(other)
    other.load_state_dict(made.state_dict())
    x = torch.randn(4, 1, 24, generator=torch.Generator().manual_seed(8))
    assert torch.equal(made[0](x)[0], other[0](x)[0]) and type(other[1]) is nn.Linear
