"""Requests that say more of guidance than a scale: which branches are evaluated, and that the sums are what they say."""

import pytest
import torch
from tiny import TINY

from cadenza.core.errors import RequestError
from cadenza.core.types import FusedConditions, GuidanceBranch
from cadenza.samplers.guidance import Guidance, concat_conditions
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

ITEM = {"prompt": "slow piano", "tempo": 80, "key": "A minor"}


@pytest.fixture(scope="module")
def system() -> System:
    torch.manual_seed(0)
    routes = {"cross": ["prompt", "tempo"], "global": [{"id": "key", "guided": False}]}
    system = System(SystemSpec.parse({**TINY, "fusion": routes}))
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return system.eval().requires_grad_(False)


def branches(system: System, items: list[dict], **fields) -> list[GuidanceBranch]:
    request = Request.from_input(items, **fields)
    return system._branches([clip.item for clip in request.expand()], torch.tensor([50] * len(request.expand())), request)


def fused(system: System, *items: dict) -> FusedConditions:
    return system.fuse(system.encode_conditions(system.prepare(items)), frames=50)


def same(a: FusedConditions, b: FusedConditions) -> bool:
    assert a.cross is not None and b.cross is not None and a.global_vector is not None and b.global_vector is not None
    ours, theirs = a.cross.x * a.cross.mask[..., None], b.cross.x * b.cross.mask[..., None]
    n = min(ours.shape[1], theirs.shape[1])  # what is longer must be padding
    return torch.equal(ours[:, :n], theirs[:, :n]) and torch.equal(a.global_vector, b.global_vector)


def test_what_is_not_guided_stays_in_every_branch(system: System) -> None:
    given, null = branches(system, [ITEM], guidance=3)
    assert (given.weight, null.weight) == (3, -2) and same(given.fused, fused(system, ITEM))
    assert torch.equal(null.fused.global_vector, given.fused.global_vector)  # type: ignore[arg-type]
    assert null.fused.cross is not None
    learned = fused(system, {"key": "A minor"})
    assert (
        same(FusedConditions(null.fused.cross, global_vector=null.fused.global_vector), learned)
        or null.fused.cross.mask.sum() == 2
    )
    assert len(branches(system, [{"key": "A minor"}], guidance=3)) == 1  # nothing to guide by


def test_a_negative_item_stands_for_no_conditions(system: System) -> None:
    negative = {"prompt": "drums"}
    given, null = branches(system, [ITEM], guidance={"scale": 3, "negative": negative})
    assert null.weight == -2 and same(null.fused, fused(system, {**negative, "key": "A minor"}))
    two = branches(system, [ITEM, {}], guidance={"negative": ["drums", {"tempo": 60}]}, variations=2)
    items = [*[{**negative, "key": "A minor"}] * 2, *[{"tempo": 60}] * 2]
    expected = concat_conditions([fused(system, item) for item in items], 1)  # each item's own tokens, then padding
    assert same(two[1].fused, expected)
    assert len(branches(system, [ITEM], guidance={"scale": 1, "negative": negative})) == 1
    with pytest.raises(RequestError, match="negative has 2 items for 3"):
        Request.from_input([ITEM] * 3, guidance={"negative": ["a", "b"]})


def test_emphasis_and_weights_ask_for_parts(system: System) -> None:
    parts = branches(system, [ITEM], guidance={"scale": 2.0, "id_scales": {"tempo": 3.0}})
    assert [branch.weight for branch in parts] == [6.0, -4.0, -1.0]
    assert same(parts[1].fused, fused(system, {"prompt": "slow piano", "key": "A minor"}))
    parts = branches(system, [ITEM], guidance={"weights": {"prompt": 2.0, "tempo": -1.0}})
    assert [branch.weight for branch in parts] == [2.0, -1.0]
    with pytest.raises(RequestError, match="no condition called 'tmpo'. Did you mean 'tempo'"):
        branches(system, [ITEM], guidance={"id_scales": {"tmpo": 3.0}})


def test_a_number_and_its_long_form_are_the_same(system: System) -> None:
    short = system.generate_frames(ITEM, seconds=0.05, seed=1, guidance=2.5).data
    long = system.generate_frames(ITEM, seconds=0.05, seed=1, guidance=Guidance(scale=2.5, id_scales={"tempo": 1.0})).data
    assert torch.equal(short, long)
    assert Request.from_input(ITEM, guidance={"scale": 2.5}).guidance == Request.from_input(ITEM, guidance=2.5).guidance


def test_guidance_of_no_strength_is_none_at_all(system: System) -> None:
    """Where it never holds, the codes are those of scale 1; where it holds throughout, those without a schedule."""
    plain = system.generate_frames(ITEM, seconds=0.05, seed=1, guidance=1).data
    never = {"scale": 4.0, "schedule": "linear", "strength": (0.0, 0.0)}
    assert torch.equal(system.generate_frames(ITEM, seconds=0.05, seed=1, guidance=never).data, plain)
    full = system.generate_frames(ITEM, seconds=0.05, seed=1, guidance=4.0).data
    always = {"scale": 4.0, "schedule": "cosine", "strength": (1.0, 1.0)}
    assert torch.equal(system.generate_frames(ITEM, seconds=0.05, seed=1, guidance=always).data, full)
    late = system.generate_frames(ITEM, seconds=0.05, seed=1, guidance={"scale": 4.0, "interval": (0.5, 1.0)}).data
    assert torch.equal(late[..., :11], plain[..., :11]) and not torch.equal(late, plain)
    loose = system.generate_frames(ITEM, seconds=0.05, seed=1, guidance={"scale": 4.0, "rescale": 0.7}).data
    assert not torch.equal(loose, full)


def test_an_item_is_guided_alone_as_in_a_batch(system: System) -> None:
    how = {"scale": 3.0, "id_scales": {"tempo": 2.0}, "interval": (0.2, 0.8), "schedule": "linear", "rescale": 0.5}
    how["negative"] = {"prompt": "noise"}
    items = [ITEM, {"prompt": "drums"}, {"tempo": 100, "prompt": "a much longer text than the others have"}]
    together = list(system.generate_frames(items, seconds=[0.04, 0.02, 0.03], seed=[1, 2, 3], guidance=how))
    for i, (item, seconds) in enumerate(zip(items, (0.04, 0.02, 0.03), strict=True)):
        alone = system.generate_frames(item, seconds=seconds, seed=i + 1, guidance=how)
        assert torch.equal(alone.data[0], together[i].data[0])


@pytest.mark.parametrize(
    ("guidance", "says"),
    [
        ({"scael": 3}, "guidance.scael: unknown field. Did you mean 'scale'"),
        ({"interval": [0.8, 0.2]}, r"guidance: interval: the start must be below the end, got \[0.8, 0.2\]"),
        ({"weights": {"all": 2}, "scale": 1}, "guidance: weights: cannot be combined with scale or id_scales"),
        ({"scale": "much"}, "guidance.scale: "),
        ("much", "guidance: must be a number or a mapping"),
        (float("nan"), "guidance: must be a finite number"),
    ],
)
def test_a_mistake_in_guidance_is_said_once_in_its_place(guidance, says: str) -> None:
    with pytest.raises(RequestError, match=f"request: 1 mistake\n  {says}"):
        Request.from_input("one", guidance=guidance)
