"""The number conditioner over its range and beyond."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from cadenza.conditioners.number import NumberConditioner, NumberSpec
from cadenza.core.errors import RequestError, SpecError


def number(**fields: object) -> NumberConditioner:
    return NumberSpec.parse({"type": "number", "output_dim": 8, "min": 40, "max": 200, **fields}).build()


def places(part: NumberConditioner, *values: Any) -> list[float]:
    return part.prepare(values).tensors["position"].tolist()


def test_range_is_spread_evenly() -> None:
    assert places(number(), 40, 80, 120, 200) == pytest.approx([0, 0.25, 0.5, 1])
    assert places(number(min=-10, max=10), -10, 0, 10) == pytest.approx([0, 0.5, 1])
    assert places(number(min=1, max=100, log=True), 1, 10, 100) == pytest.approx([0, 0.5, 1])


def test_every_kind_of_number_is_read() -> None:
    values = [80, 80.0, np.float32(80), np.int64(80), torch.tensor(80)]
    assert places(number(), *values) == pytest.approx([0.25] * len(values))


def test_outside_is_clamped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="300 is outside the range from 40 to 200"):
        assert places(number(), 300) == [1]
    with pytest.warns(UserWarning, match="-5 is outside"):
        assert places(number(log=True), -5) == [0]


def test_outside_is_refused_on_demand() -> None:
    with pytest.raises(RequestError, match="300 is outside the range from 40 to 200"):
        number(outside="error").prepare([300])
    assert places(number(outside="error"), 40, 200) == [0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "fast", "80", True, [80], 80j, np.nan, torch.zeros(2)])
def test_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(RequestError, match="a number from 40 to 200 is needed, got"):
        number().prepare([value])


def test_features_are_waves_over_the_range() -> None:
    part = number(bands=4)
    with torch.no_grad():
        part.out.weight.copy_(torch.eye(8, 9))
        part.out.bias.zero_()
    place = 0.3
    x = part(part.prepare([40 + 160 * place])).embeddings[0, 0]
    cycles = [0.25 * 2 ** (7 * band / 3) for band in range(4)]  # from a quarter to 32 over the range
    expected = [
        place,
        *(math.sin(2 * math.pi * c * place) for c in cycles),
        *(math.cos(2 * math.pi * c * place) for c in cycles),
    ]
    torch.testing.assert_close(x, torch.tensor(expected[:8]), atol=1e-5, rtol=1e-5)


def test_near_numbers_are_near_and_all_are_told_apart() -> None:
    part = number(output_dim=64)
    x = part(part.prepare([float(v) for v in range(40, 201)])).embeddings[:, 0]
    distance = torch.cdist(x, x) + torch.eye(len(x)) * 1e9
    assert distance.min() > 0.05, "no two tempi look the same"
    neighbours = distance.argmin(1) - torch.arange(len(x))
    assert neighbours.abs().max() <= 1, "the nearest tempo is the next one"


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({"min": 5, "max": 5}, "must be below max"),
        ({"min": 0, "log": True}, "must be above 0"),
        ({"max": math.inf}, "finite"),
        ({"outside": "ignore"}, "clamp"),
    ],
)
def test_refuses_ranges_that_are_none(fields: dict[str, object], mistake: str) -> None:
    with pytest.raises(SpecError, match=mistake):
        number(**fields)


def test_learned_frequencies_are_cycles_over_the_range() -> None:
    part = number(bands=3, frequencies="learned", min=-2, max=10)
    assert part.cycles is not None and part.cycles.requires_grad
    with torch.no_grad():
        part.out.weight.copy_(torch.eye(8, 7))
        part.out.bias.zero_()
    x = part(part.prepare([4.0])).embeddings[0, 0, :7].detach().numpy()
    phase = 2 * np.pi * 0.5 * part.cycles.detach().numpy()
    np.testing.assert_allclose(x, [0.5, *np.sin(phase), *np.cos(phase)], atol=1e-5)
    assert number().cycles is None
