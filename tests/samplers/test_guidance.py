"""Guidance as a weighted sum of branches, against closed forms."""

import math
from typing import Any

import pytest
import torch

from cadenza.core.errors import RequestError, SpecError
from cadenza.core.types import FusedConditions, GuidanceBranch, InterpolatedCondition, MaskedSequence
from cadenza.samplers.guidance import (
    Guidance,
    GuidanceMixer,
    batch_branches,
    expand_guidance,
    guidance_schedule,
    nonzero_branches,
    rescale_std,
    weighted_sum,
)

IDS = ["text", "style", "melody"]


def cfg_branches(given: FusedConditions, null: FusedConditions, scale: float) -> list[GuidanceBranch]:
    """Classifier-free guidance (arXiv:2207.12598, w = scale - 1): null + scale * (given - null)."""
    return nonzero_branches([GuidanceBranch(scale, given, 1.0), GuidanceBranch(1 - scale, null)])


def tokens(n: int, width: int = 3) -> MaskedSequence:
    return MaskedSequence(torch.randn(2, n, width), torch.ones(2, n, dtype=torch.bool))


def test_classifier_free_is_null_plus_scale_times_the_difference() -> None:
    given, null = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    for scale in (0.5, 3.0, -1.0):
        weights = [branch.weight for branch in cfg_branches(FusedConditions(), FusedConditions(), scale)]
        torch.testing.assert_close(weighted_sum(torch.cat([given, null]), weights), null + scale * (given - null))


def test_branches_without_weight_are_not_evaluated() -> None:
    given, null = FusedConditions(add=torch.zeros(1, 1, 1)), FusedConditions()
    assert [branch.fused for branch in cfg_branches(given, null, 1.0)] == [given]
    assert [branch.fused for branch in cfg_branches(given, null, 0.0)] == [null]
    assert len(nonzero_branches([GuidanceBranch(0.0, given, 1.0), GuidanceBranch(1.0, null)], plain=True)) == 2


def test_weights_must_sum_to_one() -> None:
    with pytest.raises(RequestError, match="sum to 1.5"):
        nonzero_branches([GuidanceBranch(1.0, FusedConditions()), GuidanceBranch(0.5, FusedConditions())])


def test_batched_branches_keep_their_conditions() -> None:
    a, b = tokens(2), tokens(5)
    add = torch.randn(2, 4, 3)
    timed = MaskedSequence(b.x, b.mask, torch.randn(2, 5, 4))
    curve = InterpolatedCondition(torch.randn(2, 6, 3), torch.tensor([6, 2]), "linear")
    branches = [
        GuidanceBranch(1, FusedConditions(cross=a)),
        GuidanceBranch(1, FusedConditions(cross=timed, add=add, interpolated=(curve,))),
        GuidanceBranch(-1, FusedConditions()),
    ]
    fused = batch_branches(branches, 2)
    assert fused.cross is not None and fused.cross.x.shape == (6, 5, 3) and fused.prepend is None
    assert fused.cross.mask.sum(1).tolist() == [2, 2, 5, 5, 0, 0]
    assert torch.equal(fused.cross.x[:2, :2], a.x) and torch.equal(fused.cross.x[2:4], b.x)
    assert fused.cross.bias is not None and torch.equal(fused.cross.bias[2:4], timed.bias)  # type: ignore[arg-type]
    assert not fused.cross.bias[:2, :2].any() and (fused.cross.bias[:2, 2:] == -torch.inf).all()
    assert fused.add is not None and torch.equal(fused.add[2:4], add)
    assert not fused.add[:2].any() and not fused.add[4:].any()
    assert (
        fused.interpolated is not None
        and torch.equal(fused.interpolated[0].x[2:4], curve.x)
        and not fused.interpolated[0].x[4:].any()
    )


def weighed(guidance: Guidance, told: list[str] = IDS, scale: float = 3.0) -> dict[str, Any]:
    """Return the nonzero weights by ids."""
    return {
        "none" if term.ids is None else "+".join(sorted(term.ids)): pytest.approx(term.weight)
        for term in expand_guidance(guidance, scale, IDS, told)
        if abs(term.weight) > 1e-9
    }


def test_scale_gives_two_terms_or_one_if_enough() -> None:
    assert weighed(Guidance()) == {"melody+style+text": 3.0, "none": -2.0}
    assert weighed(Guidance(scale=1)) == {"melody+style+text": 1.0}
    assert weighed(Guidance(scale=0)) == {"none": 1.0}
    assert weighed(Guidance(), told=[]) == {"none": 1.0}
    assert weighed(Guidance(negative=[{"text": "noise"}]), told=[]) == {"": 3.0, "none": -2.0}  # type: ignore[arg-type]


def test_emphasis_of_one_id_is_double_guidance() -> None:
    """uncond + a (style + b (both - style) - uncond), as in MusicGen-Style, on random outputs."""
    a, b = 3.0, 5.0
    both, style, uncond = torch.randn(3, 4, 7)
    answers = {"style+text": both, "style": style, "none": uncond}
    weights = weighed(Guidance(scale=a, id_scales={"text": b}), told=["text", "style"])
    got = sum((answers[name] * weight.expected for name, weight in weights.items()), torch.zeros(4, 7))
    torch.testing.assert_close(got, uncond + a * (style + b * (both - style) - uncond))
    assert weighed(Guidance(id_scales={"text": 1.0})) == weighed(Guidance())
    assert weighed(Guidance(id_scales={"text": 5.0}), told=["style"]) == {"style": 3.0, "none": -2.0}  # no item has a text


def test_weights_are_guidance_by_several_sources() -> None:
    """w_all * v(all) + w_text * v(text) + (1 - w_all - w_text) * v(null), as in JASCO."""
    got = weighed(Guidance(weights={"all": 1.75, "text": 3.5}))
    assert got == {"melody+style+text": 1.75, "text": 3.5, "none": 1 - 1.75 - 3.5}
    got = weighed(Guidance(weights={"text+melody": 2.0, "style": -1.0}))
    assert got == {"melody+text": 2.0, "style": -1.0}
    with pytest.raises(RequestError, match="no condition called 'txt'. Did you mean 'text'"):
        expand_guidance(Guidance(weights={"txt": 1.0}), 3.0, IDS, IDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"all": 1}, "scale": 2}, "remove one of them"),
        ({"interval": (0.5, 0.5)}, "the start must be below the end"),
        ({"scale": math.inf}, "scale"),
        ({"rescale": 1.5}, "rescale"),
        ({"negative": [3]}, "expected a text or a mapping"),
        ({"schedul": "linear"}, "Did you mean 'schedule'"),
    ],
)
def test_invalid_guidance_is_rejected(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Guidance.parse(fields)


def test_strength_follows_the_schedule_of_each_item() -> None:
    lengths = torch.tensor([10, 4])
    assert guidance_schedule(Guidance(), lengths, size=10) is None
    part = guidance_schedule(Guidance(interval=(0.25, 0.75)), lengths, size=10)
    assert part is not None and part[1, :4].tolist() == [0, 1, 1, 0] and part[0].sum() == 5
    line = guidance_schedule(Guidance(schedule="linear", strength=(1.0, 0.2)), lengths, size=10)
    assert line is not None and line[1, :4].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3])
    cosine = guidance_schedule(Guidance(schedule="cosine", strength=(0.0, 1.0)), lengths, size=10)
    want = [(1 - math.cos(math.pi * (i + 0.5) / 4)) / 2 for i in range(4)]
    assert cosine is not None and cosine[1, :4].tolist() == pytest.approx(want, abs=1e-6)


def test_guidance_by_strength_is_guidance_at_that_scale() -> None:
    """At a share r of its strength, scale s is scale 1 + r (s - 1)."""
    given, null = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    mix = GuidanceMixer.of(cfg_branches(FusedConditions(), FusedConditions(), 4.0))
    share = torch.tensor([0.5, 0.0])
    got = mix(torch.cat([given, null]), share)
    for i, scale in enumerate((2.5, 1.0)):
        torch.testing.assert_close(got[i], null[i] + scale * (given[i] - null[i]))


def test_rescaling_restores_the_standard_deviation() -> None:
    given, null = torch.randn(2, 3, 50), torch.randn(2, 3, 50)
    mix = GuidanceMixer.of(cfg_branches(FusedConditions(), FusedConditions(), 6.0), 1.0)
    plain = GuidanceMixer.of(cfg_branches(FusedConditions(), FusedConditions(), 6.0))
    outputs = torch.cat([given, null])
    torch.testing.assert_close(mix(outputs).std(-1), given.std(-1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(mix(outputs), plain(outputs), -1), torch.ones(2, 3))
    half = rescale_std(plain(outputs), given, 0.5)
    torch.testing.assert_close(half, (mix(outputs) + plain(outputs)) / 2)
    some = GuidanceMixer.of(cfg_branches(FusedConditions(), FusedConditions(), 6.0), 1.0)(outputs, spread=20)
    torch.testing.assert_close(some[..., :20].std(-1), given[..., :20].std(-1))
