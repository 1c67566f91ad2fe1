"""One half-precision query on a CPU, converted to float32 for the whole batch or item by item."""

import pytest
import torch

from cadenza.nn import attention as module
from cadenza.nn.attention import attention

MASKS = {
    "none": None,
    "of each item": torch.rand(3, 1, 1, 70, generator=torch.Generator().manual_seed(1)) > 0.3,
    "of all": torch.rand(1, 1, 1, 70, generator=torch.Generator().manual_seed(2)) > 0.3,
    "a bias": torch.randn(3, 1, 1, 70, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("many", [1, 2**30])
@pytest.mark.parametrize("kind", MASKS)
def test_softmax_of_the_scores(monkeypatch, many, kind):
    monkeypatch.setattr(module, "MAX_WIDENED", many)
    rng, mask = torch.Generator().manual_seed(0), MASKS[kind]
    q, k, v = (torch.randn(3, 4, n, 16, generator=rng).bfloat16() for n in (1, 70, 70))
    scores = q.double() @ k.double().mT / 4
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.bfloat16().double()
    got = attention(q, k, v, mask)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), scores.softmax(-1) @ v.double(), atol=0.01, rtol=0.01)
