"""The int conditioner over its range and beyond."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from cadenza.conditioners.int import IntConditioner, IntSpec
from cadenza.core.errors import RequestError, SpecError


def whole(**fields: object) -> IntConditioner:
    return IntSpec.parse({"type": "int", "output_dim": 4, "min": 10, "max": 14, **fields}).build()


def test_each_number_has_its_own_vector_from_the_least_on() -> None:
    part = whole()
    assert part.table.weight.shape == (5, 4)
    x = part(part.prepare([10, 14, 12])).embeddings[:, 0]
    assert torch.equal(x, part.table.weight[[0, 4, 2]])
    below = whole(min=-3, max=2)
    assert torch.equal(below(below.prepare([-3, 0])).embeddings[:, 0], below.table.weight[[0, 3]])


def test_every_kind_of_whole_number_is_read() -> None:
    values = [12, 12.0, np.int64(12), np.float32(12), torch.tensor(12)]
    assert whole().prepare(values).tensors["row"].tolist() == [2] * len(values)


def test_outside_is_clamped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="99 is outside the range from 10 to 14"):
        assert whole().prepare([99]).tensors["row"].tolist() == [4]
    with pytest.warns(UserWarning, match="-1 is outside"):
        assert whole().prepare([-1]).tensors["row"].tolist() == [0]


def test_outside_is_refused_on_demand() -> None:
    with pytest.raises(RequestError, match="15 is outside the range from 10 to 14"):
        whole(outside="error").prepare([15])


@pytest.mark.parametrize("value", [12.5, math.nan, math.inf, "12", True, [12], 12j, torch.zeros(2)])
def test_refuses_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(RequestError, match="a whole number from 10 to 14 is needed, got"):
        whole().prepare([value])


def test_refuses_a_range_that_is_none() -> None:
    with pytest.raises(SpecError, match=r"min \(14\) must be below max \(14\)"):
        whole(min=14)


def test_vectors_begin_as_large_as_told() -> None:
    for std in (1.0, 0.1):
        assert float(whole(max=400, output_dim=64, std=std).table.weight.detach().std()) == pytest.approx(std, rel=0.05)
