"""What flows keeps its lengths."""

import pytest
import torch
from jaxtyping import TypeCheckError

from cadenza.core.types import Codes, Condition, Latents


def test_iterating_trims() -> None:
    codes = Codes(torch.arange(12).view(2, 2, 3), torch.tensor([3, 1]), samples=torch.tensor([30, 7]))
    one, two = codes
    assert one.ids.shape == (1, 2, 3) and two.ids.tolist() == [[[6], [9]]]
    assert two.lengths.tolist() == [1] and two.samples is not None and two.samples.tolist() == [7]
    first, last = Latents(torch.zeros(2, 4, 5), torch.tensor([0, 5]))
    assert first.z.shape == (1, 4, 0) and last.z.shape == (1, 4, 5)


def test_lengths_default_to_all() -> None:
    assert Codes(torch.zeros(2, 1, 5, dtype=torch.long)).lengths.tolist() == [5, 5]
    assert Latents(torch.zeros(3, 1, 5, device="meta")).lengths.device.type == "meta"


def test_moving_moves_everything() -> None:
    codes = Codes(torch.zeros(1, 2, 3, dtype=torch.long), samples=torch.tensor([9]), scale=torch.ones(1, 1)).to("meta")
    assert codes.ids.is_meta and codes.lengths.is_meta and codes.samples.is_meta and codes.scale.is_meta  # type: ignore[union-attr]


def test_shapes_are_checked_in_tests() -> None:
    """Otherwise the annotations are decoration."""
    with pytest.raises(TypeCheckError):
        Latents(torch.zeros(2, 3))
    with pytest.raises(TypeCheckError):
        Codes(torch.zeros(1, 2, 3))  # type: ignore[arg-type]  # floats
    with pytest.raises(TypeCheckError):
        Condition(torch.zeros(2, 3, 8), torch.ones(2, 4, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
