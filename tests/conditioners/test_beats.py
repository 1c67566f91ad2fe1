"""The beats conditioner: the same frame format from a tempo and from times."""

import math
from typing import Any

import pytest
import torch

from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.beats import BeatsConditioner, BeatsSpec
from cadenza.core.errors import RequestError, SpecError


def beats(**fields: Any) -> BeatsConditioner:
    return BeatsSpec.parse({"type": "beats", "output_dim": 8, "frame_rate": 4, "max_frames": 6, **fields}).build()


def count(value: Any) -> list[float]:
    return beats().prepare([value]).tensors["count"][0].tolist()


def test_a_tempo_counts_from_the_start() -> None:
    assert count(60) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25])
    assert count(120) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert beats().prepare([90]).tensors["speed"][0].tolist() == pytest.approx([1.5] * 6)


def test_times_give_what_their_tempo_gives() -> None:
    assert count([0.0, 0.5, 1.0, 1.5]) == pytest.approx(count(120))
    assert count([0.0, 0.5]) == pytest.approx(count(120)), "the beat goes on after the last time"
    assert count([0.5, 1.0]) == pytest.approx([-1, -0.5, 0, 0.5, 1, 1.5]), "and before the first"
    assert count(torch.tensor([0.0, 1.0, 1.5])) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.5])


def test_frames_of_the_same_phase_are_alike() -> None:
    """Four beats later everything but the bar of three repeats; with its waves cut off the vectors are equal."""
    part = beats(max_frames=40)
    with torch.no_grad():
        part.up.weight[:, [2, 9]] = 0  # sine and cosine of a third of a beat
        x = part(part.prepare([120])).embeddings[0]
    torch.testing.assert_close(x[8:], x[:-8], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(x[4:], x[:-4], atol=1e-3)


def test_beyond_the_range_the_nearest_end_is_used() -> None:
    with pytest.warns(UserWarning, match="500 is outside the range from 30 to 300"):
        found = count(500)
    assert found == pytest.approx(count(300))


@pytest.mark.parametrize("value", [math.nan, "fast", True, [1.0], [], [0.0, "1"], [0.0, math.inf], {"tempo": 90}])
def test_refuses_what_is_neither(value: Any) -> None:
    with pytest.raises(RequestError, match="a tempo in beats a minute or the times of two or more beats are needed"):
        beats().prepare([value])


def test_times_must_rise() -> None:
    with pytest.raises(RequestError, match="must rise"):
        beats().prepare([[0.0, 1.0, 1.0]])


def test_the_range_must_be_one() -> None:
    with pytest.raises(SpecError, match=r"min \(90\) must be below max \(60\)"):
        beats(min=90, max=60)


def test_a_clip_that_begins_later_has_the_beats_of_its_piece() -> None:
    parts = ConditionerSet({"it": beats(max_frames=6)})
    whole = beats(max_frames=10).prepare([90]).tensors["count"][0]
    later = parts.prepare([{"it": 90, "seconds_start": 1.0}])["it"].tensors["count"][0]
    assert later.tolist() == pytest.approx(whole[4:].tolist())
    times = parts.prepare([{"it": [0.0, 2 / 3, 4 / 3], "seconds_start": 1.0}])["it"].tensors["count"][0]
    assert (times - times[0]).tolist() == pytest.approx((later - later[0]).tolist())
