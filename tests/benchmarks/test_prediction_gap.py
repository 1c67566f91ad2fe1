"""QuantizationReport with full precision: its measures in closed form, and predictions against training's and generation's."""

import math
from dataclasses import replace

import pytest
import torch
from prediction_gap import (
    CodesExample,
    QuantizationReport,
    apply_guidance,
    compare_systems,
    kl_divergence,
    prediction_gap,
    teacher_forced_logits,
)
from tiny import TINY, tiny_system
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.types import Codes
from cadenza.samplers.tokens import TokenSampling
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

ITEM = {"prompt": "slow piano", "tempo": 80, "key": "A minor"}


def wide(seed: int = 0, **generator: object) -> System:
    """A tiny system of a width that int4 can have."""
    torch.manual_seed(seed)
    system = System(SystemSpec.parse({**TINY, "generator": {**TINY["generator"], "width": 32, **generator}}))
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return system.eval().requires_grad_(False)


def excerpt(frames: int = 40, seed: int = 0) -> CodesExample:
    return CodesExample(Codes(torch.randint(16, (1, 2, frames), generator=torch.Generator().manual_seed(seed))), ITEM)


def test_divergence_is_that_of_torch_and_nothing_where_nothing_is_possible() -> None:
    full, other = torch.randn(2, 5, 7, 9)
    wanted = F.kl_div(other.log_softmax(-1), full.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(full, other), wanted, atol=1e-5, rtol=1e-4)
    never = F.pad(torch.stack([full, other]), (0, 1), value=-torch.inf)
    torch.testing.assert_close(kl_divergence(*never), wanted, atol=1e-5, rtol=1e-4)
    assert kl_divergence(full, full).abs().max() == 0
    two = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    assert float(kl_divergence(*two)) == pytest.approx(0.5 * math.log(0.25 / 0.09))


def test_the_share_drawn_alike_is_how_far_two_cumulative_distributions_overlap() -> None:
    rows = 0.7 * torch.randn(2, 12)
    a, b = (row.double().softmax(-1).cumsum(-1) for row in rows)
    low = torch.maximum(F.pad(a[:-1], (1, 0)), F.pad(b[:-1], (1, 0)))
    wanted = (torch.minimum(a, b) - low).clamp(min=0).sum()
    full, other = (row.expand(2, 20_000, -1) for row in rows)
    found = prediction_gap(full, other, ids=torch.zeros(2, 20_000).long(), sampling=TokenSampling(top_k=0))
    assert found.drawn.tolist() == pytest.approx([float(wanted)] * 2, abs=0.015)
    assert found.likeliest.tolist() == [float(rows[0].argmax() == rows[1].argmax())] * 2
    assert found.loss.tolist() == pytest.approx([float(rows[0].log_softmax(-1)[0] - rows[1].log_softmax(-1)[0])] * 2, abs=1e-4)


def test_guided_goes_from_without_past_with_conditions() -> None:
    given, null = F.pad(torch.randn(2, 3, 5, 4), (0, 1), value=-torch.inf)
    for scale in (0.0, 1.0, 3.0):
        found = apply_guidance(torch.stack([given, null]), scale)
        torch.testing.assert_close(found[..., :4], (null + scale * (given - null))[..., :4], atol=1e-5, rtol=1e-5)
        assert (found[..., 4] == -torch.inf).all()


def test_predictions_have_the_loss_that_training_has() -> None:
    system, one = tiny_system(), excerpt()
    logits = teacher_forced_logits(system, one)
    found = F.cross_entropy(logits[0].flatten(0, 1), one.codes.ids.flatten(), reduction="none").view(2, -1).mean(1)
    conditions = system.encode_conditions(system.prepare([ITEM], frames=40))
    whole = replace(one.codes, ended=torch.tensor([True]))
    losses = system.generator.losses(whole, system.fuse(conditions, frames=40), torch.Generator())  # type: ignore[union-attr]
    assert found.tolist() == pytest.approx([float(losses["ce_0"]), float(losses["ce_1"])], rel=1e-4)
    without = teacher_forced_logits(system, CodesExample(one.codes, {}))
    torch.testing.assert_close(logits[1], without[1])
    torch.testing.assert_close(without[0], without[1])
    assert (logits[0] - logits[1]).abs().max() > 0.1, "what is asked matters"


@pytest.mark.parametrize("end", [False, True])
def test_read_step_by_step_or_at_once_is_the_same_in_full_precision(end: bool) -> None:
    system = wide(end_of_sequence=end)
    torch.testing.assert_close(
        teacher_forced_logits(system, excerpt(), stepwise=True), teacher_forced_logits(system, excerpt()), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_what_is_made_without_chance_is_what_is_predicted_step_by_step(kind: str | None) -> None:
    system = wide()
    if kind is not None:
        system.quantize(kind)
    made = system.generate_frames(ITEM, seconds=0.1, seed=0, sampling={"temperature": 0})
    assert isinstance(made, Codes) and made.ids.shape[-1] == 50
    found = apply_guidance(teacher_forced_logits(system, CodesExample(made, ITEM), stepwise=True), 3.0)
    assert torch.equal(found.argmax(-1), made.ids[0])


def test_fewer_bits_are_farther_away_and_the_same_model_is_not() -> None:
    full, others = wide(), {"same": (wide(), False), "walked": (wide(), True)}
    others |= {kind: (wide().quantize(kind), False) for kind in ("int8", "int4")}
    others |= {f"{kind} walked": (wide().quantize(kind), True) for kind in ("int8", "int4")}
    for share in (0.01, 0.1):
        noisy = wide()
        for weight in noisy.generator.parameters():  # type: ignore[union-attr]
            weight.add_(0.2 * share * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        others[f"noise {share}"] = noisy, False
    found = compare_systems(full, others, [excerpt(seed=seed) for seed in range(3)], scales=(1.0, 3.0))
    for scale in (1.0, 3.0):
        same = found["same", scale]
        assert (same.clips, same.codes) == (3, 240)
        assert same.divergence.mean.value == same.loss.mean.value == 0
        assert same.likeliest.mean.low == same.drawn.mean.low == 1
        assert found["walked", scale].divergence.mean.high < 1e-8
        for order in (["int8", "int4"], ["int8 walked", "int4 walked"], ["noise 0.01", "noise 0.1"]):
            near, far = (found[name, scale] for name in order)
            assert 0 < near.divergence.mean.value < near.divergence.mean.high < far.divergence.mean.low
            assert near.drawn.mean.value > far.drawn.mean.value
        assert found["int8", scale].likeliest.mean.value > 0.9


def test_bounds_hold_the_mean_of_the_clips() -> None:
    one: QuantizationReport = compare_systems(
        wide(), {"int4": (wide().quantize("int4"), False)}, [excerpt(seed=seed) for seed in range(4)], scales=(1.0,)
    )["int4", 1.0]
    each = [
        compare_systems(wide(), {"int4": (wide().quantize("int4"), False)}, [excerpt(seed=seed)], scales=(1.0,))[
            "int4", 1.0
        ].divergence
        for seed in range(4)
    ]
    values = [measure.mean.value for measure in each]
    assert one.divergence.mean.value == pytest.approx(sum(values) / 4, rel=1e-4)
    assert min(values) <= one.divergence.mean.low < one.divergence.mean.high <= max(values)
    assert one.divergence.codebooks[1] == pytest.approx(sum(measure.codebooks[1] for measure in each) / 4, rel=1e-4)


def test_what_cannot_be_measured_is_refused() -> None:
    alone = System(SystemSpec.parse({"codec": TINY["codec"]}))
    with pytest.raises(RequestError, match="codec_lm"):
        teacher_forced_logits(alone, excerpt())
    with pytest.raises(RequestError, match="up to 20 frames"):
        teacher_forced_logits(wide(max_frames=20), excerpt(40))
