"""Order and receptive field of SEANet's layers."""

import pytest
import torch

from cadenza.nn.conv import Conv1d, ConvConfig, ConvTranspose1d, ResidualLSTM
from cadenza.nn.seanet import Activation, Decoder, Encoder, ResidualUnit, SeanetConfig, min_first_chunk_frames


def shape(**changes: object) -> SeanetConfig:
    fields = {"channels": 1, "dimension": 6, "strides": (4, 2), "widths": (4, 8, 16), "residual_layers": (1, 1)}
    return SeanetConfig(**(fields | changes))  # type: ignore[arg-type]


def test_layers_have_the_indices_of_encodec() -> None:
    released = shape(strides=(8, 5, 4, 2), widths=(2, 4, 8, 16, 32), residual_layers=(1,) * 4, lstm_layers=2)
    encoder, decoder = Encoder(released).layers, Decoder(released).layers
    kinds = {ResidualUnit: [1, 4, 7, 10], Activation: [2, 5, 8, 11, 14], Conv1d: [0, 3, 6, 9, 12, 15], ResidualLSTM: [13]}
    for kind, places in kinds.items():
        assert [i for i, layer in enumerate(encoder) if isinstance(layer, kind)] == places
    assert [layer.stride for layer in encoder if isinstance(layer, Conv1d)] == [1, 2, 4, 5, 8, 1]
    kinds = {ConvTranspose1d: [3, 6, 9, 12], ResidualUnit: [4, 7, 10, 13], Activation: [2, 5, 8, 11, 14], ResidualLSTM: [1]}
    for kind, places in kinds.items():
        assert [i for i, layer in enumerate(decoder) if isinstance(layer, kind)] == places
    assert [layer.stride for layer in decoder if isinstance(layer, ConvTranspose1d)] == [8, 5, 4, 2]


def test_widths_and_residuals_are_ordered_from_the_sample_rate() -> None:
    encoder = Encoder(shape(widths=(4, 6, 10), residual_layers=(0, 3))).layers
    residuals = [layer for layer in encoder if isinstance(layer, ResidualUnit)]
    assert [layer.block.layers[1].conv.in_channels for layer in residuals] == [6, 6, 6]
    assert [layer.block.layers[1].conv.dilation for layer in residuals] == [(1,), (2,), (4,)]


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_first_chunk_is_the_shortest_that_streams(mode: str) -> None:
    """Check that one frame fewer gives other samples."""
    torch.manual_seed(0)
    style = ConvConfig(causal=True, pad_mode=mode)  # type: ignore[arg-type]
    for residual_layers, kernel in (((1, 1), 7), ((4, 4), 3)):
        form = shape(style=style, residual_layers=residual_layers, kernel=kernel)
        decoder, z = Decoder(form).eval(), torch.randn(1, 6, 20)
        whole = decoder(z)

        def streams(first: int, decoder: Decoder = decoder, z: torch.Tensor = z, whole: torch.Tensor = whole) -> bool:
            carried: dict = {}
            parts = [decoder(part, carried) for part in z.split([first, 20 - first], -1)]
            return torch.allclose(torch.cat(parts, -1), whole, atol=1e-5)

        need = min_first_chunk_frames(form)
        assert streams(need) and (need == 1 or not streams(need - 1))
