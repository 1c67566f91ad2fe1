"""Two systems on the same requests and seeds, on scores whose gap is known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from score_gaps import mean_gaps, overall_gap, score_gaps

from cadenza.evaluation.estimators import Estimate
from cadenza.evaluation.settings import ControlSetting
from cadenza.evaluation.targets import AttributeTargets

CLIPS = 24
ROOM = 0.8  # from chance to ceiling


def estimate(tempo: float, key: int) -> Estimate:
    none = torch.zeros(12, dtype=torch.long)
    return Estimate(tempo, key, torch.zeros(2), 0, none, none, seconds=8.0)


def case(wrong: int, *, hand: int = 0) -> tuple[list[ControlSetting], Any, Any, Any]:
    """Two systems that follow their requests, but for `wrong` tempi of the second; `hand` keys of prompts have no reference."""
    wishes = [AttributeTargets(tempo=60.0 + 7 * i, key=None if i % 2 else i % 24) for i in range(CLIPS)]
    asked = [
        ControlSetting("text", [{}] * CLIPS, wishes, [8.0] * CLIPS),
        ControlSetting("handwritten", [{}] * CLIPS, [AttributeTargets(key=3)] * CLIPS, [8.0] * CLIPS, references=False),
    ]
    right = [estimate(wish.tempo or 0, wish.key or 0) for wish in wishes]
    spoilt = [estimate(1.0, e.key) if i < wrong else e for i, e in enumerate(right)]
    first = {"text": [right], "handwritten": [[estimate(1.0, 3)] * CLIPS]}
    other = {"text": [spoilt], "handwritten": [[estimate(1.0, 4)] * hand + [estimate(1.0, 3)] * (CLIPS - hand)]}
    measured = SimpleNamespace(ceiling_minus_chance=ROOM)
    return asked, first, other, {"text": {"tempo": measured, "key": measured}, "handwritten": {"key": measured}}


def test_what_is_lost_is_a_part_of_a_with_bounds_around_it() -> None:
    found = mean_gaps(score_gaps(*case(6, hand=12)))
    assert set(found) == {"text", "handwritten"} and set(found["text"]) == {"tempo", "key"}
    lost = found["text"]["tempo"]
    assert lost.value == pytest.approx(-6 / CLIPS / ROOM)
    spread = 1.96 * (0.25 * 0.75 / CLIPS) ** 0.5 / ROOM  # of a share of six in twenty-four
    assert lost.low == pytest.approx(lost.value - spread, abs=0.06) and lost.high == pytest.approx(
        lost.value + spread, abs=0.06
    )
    assert found["text"]["key"].value == found["text"]["key"].low == found["text"]["key"].high == 0
    assert found["handwritten"]["key"].value == pytest.approx(-0.5 / ROOM)


def test_the_mean_of_all_counts_every_clip_once_and_no_prompt_without_a_reference() -> None:
    asked, *_ = one = case(6, hand=12)
    lost = overall_gap(score_gaps(*one), asked)
    shares = [(-1 / ROOM) / (1 if i % 2 else 2) if i < 6 else 0.0 for i in range(CLIPS)]  # half of them are asked for a key too
    assert lost.value == pytest.approx(sum(shares) / CLIPS) and lost.low < lost.value < lost.high <= 0
    same = overall_gap(score_gaps(*case(0)), asked)
    assert (same.value, same.low, same.high) == (0, 0, 0)
