"""Networks on the meta device have the right shapes, and take neither time nor memory."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from cadenza.nn.meta_init import init_empty_weights


def _divided(*_: int) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("some", torch.randn(3, 4, generator=None) / 2 + 1)
    module.register_buffer("sum", module.some + torch.ones(4))
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: weight_norm(nn.Conv1d(3, 5, 7)),
        lambda: weight_norm(nn.ConvTranspose1d(3, 5, 7)),
        lambda: weight_norm(nn.Conv1d(3, 5, 7), dim=2),
        lambda: nn.Embedding(7, 3),
        lambda: nn.LSTM(3, 4, num_layers=2),
        _divided,
    ],
)
def test_shapes_on_meta_equal_real_shapes(make) -> None:
    with init_empty_weights():
        outline = make()
    whole = make().state_dict()
    assert {name: (x.shape, x.dtype) for name, x in outline.state_dict().items()} == {
        name: (x.shape, x.dtype) for name, x in whole.items()
    }
    assert all(x.is_meta for x in outline.state_dict().values())


def test_explicit_devices_are_respected() -> None:
    with init_empty_weights():
        drawn = torch.randn(1000, device="cpu", generator=torch.Generator().manual_seed(0))
        assert abs(float(drawn.std()) - 1) < 0.1 and float(torch.ones(2, device="cpu").div(4).sum()) == 0.5
    assert torch.ones(2).device.type == "cpu"
