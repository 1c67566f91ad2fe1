"""Adherence compared with closed forms: perfect, shuffled, constant and half-correct outputs."""

import math
import random

import pytest
import torch

from cadenza.evaluation.adherence import adherence, paired_difference, score_matrix


def same(output: int, request: int) -> float:
    return float(output == request)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


REQUESTS = [random.Random(i).randrange(6) for i in range(120)]


def measured(outputs, requests=REQUESTS, reference=None):
    table = score_matrix(outputs, requests, same)
    return adherence(table, torch.ones(len(requests)) if reference is None else reference, rng=rng(), draws=500)


def test_perfect_outputs_have_adherence_one():
    found = measured([REQUESTS, REQUESTS])
    assert found.value.value == found.value.low == found.value.high == pytest.approx(1)
    assert (found.clips, found.seeds) == (120, 2)


def test_outputs_of_other_requests_have_adherence_zero():
    shuffled = [random.Random(s).sample(REQUESTS, len(REQUESTS)) for s in range(4)]
    found = measured(shuffled)
    assert found.value.low < 0 < found.value.high
    assert abs(found.value.value) < 0.1


def test_one_output_for_all_requests_has_adherence_zero_however_often_it_is_right():
    requests = [0] * 90 + [1] * 30
    found = measured([[0] * 120], requests)
    assert found.score.value == pytest.approx(0.75)
    # (90 * 89 + 30 * 90) of 120 * 119 pairs of different clips are right
    assert found.chance == pytest.approx((90 * 89 + 30 * 90) / (120 * 119))
    assert found.value.low < 0 < found.value.high and abs(found.value.value) < 0.02


def test_half_correct_outputs_have_adherence_one_half():
    # six equally likely values, half of the outputs right and the rest always a value that is not requested
    requests = [i % 6 for i in range(120)]
    outputs = [value if i < 60 else -1 for i, value in enumerate(requests)]
    found = measured([outputs], requests)
    chance = 60 * 19 / (120 * 119)
    assert found.chance == pytest.approx(chance)
    assert found.value.value == pytest.approx((0.5 - chance) / (1 - chance))
    assert found.value.low < found.value.value < found.value.high


def test_the_ceiling_is_what_references_reach():
    reference = torch.tensor([1.0, 0.0] * 60)
    requests = [i % 6 for i in range(120)]
    found = measured([[v if i % 2 == 0 else -1 for i, v in enumerate(requests)]], requests, reference)
    assert found.ceiling == pytest.approx(0.5)
    assert found.value.value == pytest.approx(1)


def test_nothing_to_measure_when_the_ceiling_is_chance():
    found = measured([[0] * 120], [0] * 120)
    assert math.isnan(found.value.value) and found.chance == 1


def test_requests_without_a_target_do_not_count():
    nan = float("nan")
    table = torch.tensor([[[1.0, 0.0, nan], [0.0, 1.0, nan], [0.0, 0.0, nan]]])
    found = adherence(table, torch.tensor([1.0, 1.0, nan]), rng=rng(), draws=50)
    assert (found.score.value, found.chance, found.ceiling, found.value.value) == (1, 0, 1, 1)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    chance = random.Random(1)
    hits = 0
    for _ in range(100):
        values = torch.tensor([float(chance.random() < 0.3) for _ in range(80)])
        found = paired_difference(values[None], torch.zeros(1, 80), rng=rng(), draws=400)
        hits += found.low <= 0.3 <= found.high
    assert 85 <= hits <= 100


def test_more_clips_narrow_the_bounds_by_the_square_root():
    few, many = (torch.tensor([0.0, 1.0] * n) for n in (50, 450))
    wide, narrow = (paired_difference(x[None], torch.zeros(1, len(x)), rng=rng()) for x in (few, many))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3, rel=0.15)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


def test_own_effect_is_the_mean_difference():
    found = paired_difference(torch.full((2, 30), 0.75), torch.full((2, 30), 0.25), rng=rng())
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_tables_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="square"):
        adherence(torch.zeros(1, 3, 2), torch.zeros(3), rng=rng())
