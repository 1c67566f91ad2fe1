"""Every conditioner's values may change over time, but those of conditioners that read such lists themselves."""

import pytest
import torch

from cadenza.conditioners.base import ConditionerSet, ConditionerSpec
from cadenza.core.timeline import Timeline
from cadenza.core.types import Condition


@pytest.mark.parametrize("name", ConditionerSpec.registered_names())
def test_values_that_change_are_those_of_their_spans(name: str) -> None:
    """Each span holds what its value gives alone, with its times, in a batch with plain values and none."""
    torch.manual_seed(0)
    spec, values = ConditionerSpec.lookup(name).example()
    part = spec.build().eval()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert part.handles_timelines or all(Timeline.parse(value) is None for value in values), (
        "set `timed`, or give values another form"
    )
    if part.handles_timelines:
        return
    parts = ConditionerSet({"it": part})
    one, other = values[:2]
    items = [{"it": [(0, 1.5, one), (1.5, None, other)]}, {"it": other}, {}, {"it": [(2, 3, None)]}]
    out = parts(parts.encode(parts.prepare(items)))["it"]
    assert out.present.tolist() == [True, True, False, False] and not out.mask[2:].any()
    assert out.spans is not None and out.spans[0].tolist() == [[0, 1.5, 0, 0], [1.5, float("inf"), 0, 0]]
    n = out.embeddings.shape[1] // 2
    for row, first, value in ((0, 0, one), (0, n, other), (1, 0, other)):
        alone: Condition = part(part.encode(part.prepare([value])))
        mask = out.mask[row, first : first + n]
        torch.testing.assert_close(
            out.embeddings[row, first : first + n][mask], alone.embeddings[0][alone.mask[0]], atol=1e-5, rtol=1e-4
        )
