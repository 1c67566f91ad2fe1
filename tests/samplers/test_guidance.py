"""Guidance as a weighted sum of branches."""

import pytest
import torch

from cadenza.core.errors import RequestError
from cadenza.core.types import Branch, Fused, Tokens
from cadenza.samplers.guidance import active, classifier_free, combine, stack


def tokens(n: int, width: int = 3) -> Tokens:
    return Tokens(torch.randn(2, n, width), torch.ones(2, n, dtype=torch.bool))


def test_classifier_free_is_null_plus_scale_times_the_difference() -> None:
    given, null = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    for scale in (0.5, 3.0, -1.0):
        weights = [branch.weight for branch in classifier_free(Fused(), Fused(), scale)]
        torch.testing.assert_close(combine(torch.cat([given, null]), weights), null + scale * (given - null))


def test_branches_without_weight_cost_nothing() -> None:
    given, null = Fused(add=torch.zeros(1, 1, 1)), Fused()
    assert [branch.fused for branch in classifier_free(given, null, 1.0)] == [given]
    assert [branch.fused for branch in classifier_free(given, null, 0.0)] == [null]


def test_weights_must_sum_to_one() -> None:
    with pytest.raises(RequestError, match="sum to 1.5"):
        active([Branch(1.0, Fused()), Branch(0.5, Fused())])


def test_stacked_branches_keep_what_each_had() -> None:
    a, b = tokens(2), tokens(5)
    add = torch.randn(2, 4, 3)
    fused = stack([Branch(1, Fused(cross=a)), Branch(1, Fused(cross=b, add=add)), Branch(-1, Fused())], 2)
    assert fused.cross is not None and fused.cross.x.shape == (6, 5, 3) and fused.prepend is None
    assert fused.cross.mask.sum(1).tolist() == [2, 2, 5, 5, 0, 0]
    assert torch.equal(fused.cross.x[:2, :2], a.x) and torch.equal(fused.cross.x[2:4], b.x)
    assert fused.add is not None and torch.equal(fused.add[2:4], add)
    assert not fused.add[:2].any() and not fused.add[4:].any()
