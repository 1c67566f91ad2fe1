"""Resampling sequences to other lengths, against torch's interpolate item by item."""

import pytest
import torch
from torch.nn.functional import interpolate

from cadenza.nn.conditioning import resample_sequence


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(
    ("n", "m"), [(5, 7), (7, 5), (1, 6), (6, 1), (10, 15), (15, 10), (9, 9), (3, 50), (50, 3), (235, 1504)]
)
def test_one_item_equals_torch_interpolate(mode: str, n: int, m: int) -> None:
    x = torch.randn(1, n, 4)
    got = resample_sequence(x, torch.tensor([n]), torch.tensor([m]), size=m, mode=mode)  # type: ignore[arg-type]
    torch.testing.assert_close(got, interpolate(x.mT, size=m, mode=mode).mT, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_each_item_uses_its_own_lengths(mode: str) -> None:
    x = torch.randn(3, 9, 2)
    lengths, to = torch.tensor([9, 4, 0]), torch.tensor([6, 11, 3])
    got = resample_sequence(x, lengths, to, size=11, mode=mode)  # type: ignore[arg-type]
    for i in (0, 1):
        own = interpolate(x[i : i + 1, : lengths[i]].mT, size=int(to[i]), mode=mode).mT
        torch.testing.assert_close(got[i : i + 1, : to[i]], own, atol=1e-5, rtol=1e-5)
    spoilt = x.clone()
    spoilt[1, 4:] = torch.nan  # what is not real is not looked at
    assert torch.equal(resample_sequence(spoilt, lengths, to, size=11, mode=mode)[1], got[1])  # type: ignore[arg-type]
