"""The pace of generating: what it makes of times that are known, and where it keeps what it found."""

import json
import time

import pytest
import torch
from tiny import tiny_system

from cadenza.system import pace as home
from cadenza.system.pace import SpeedEstimate, estimate_seconds, measured, pace
from cadenza.system.planner import BatchPlan, GenerationJob
from cadenza.system.request import Request

FRAMES = ((50.0, 0.011), (150.0, 0.013), (250.0, 0.019))  # flat for a while, then steeper
PACE = SpeedEstimate(first=0.5, begin=0.25, frames=FRAMES, known=0.002, decoded=0.003, decoder=0.1, layers=(2, 24))


@pytest.fixture(scope="module")
def spec():
    return tiny_system(max_frames=400).spec


def job(spec, clips=1, seconds=2.0, **fields) -> GenerationJob:
    return GenerationJob.from_request(spec, Request.from_input(["piano"] * clips, seconds=seconds, **fields))


def written(frames: int, context: int, stride: int) -> float:
    """The seconds of PACE, frame by frame."""
    total, first = 0.1 + 0.003 * frames, 0
    while True:
        known = 0 if first == 0 else context - stride
        last = min(frames - first, context)
        total += (
            0.25 + 0.002 * known + sum(0.01 + 2e-5 * n if n < 150 else 0.013 + 6e-5 * (n - 150) for n in range(known, last))
        )
        if first + context >= frames:
            return total
        first += stride


@pytest.mark.parametrize("frames", [1, 50, 399, 400, 401, 640, 1500])
def test_windows_are_counted_as_they_are_written(frames):
    assert PACE.seconds(frames, context=400, stride=240) == pytest.approx(written(frames, 400, 240))


def test_groups_are_one_after_the_other(spec, monkeypatch):
    asked = []
    monkeypatch.setattr(home, "pace", lambda spec, job: asked.append(len(job.frames)) or PACE)
    both, _ = estimate_seconds(spec, job(spec, clips=5), BatchPlan(2))
    assert asked == [2, 1]  # a pace for each size of group
    frames = job(spec).frames[0]
    assert both == pytest.approx(0.5 + 3 * written(frames, 400, 240))


def test_layers_that_were_not_timed_are_added(spec, monkeypatch):
    """Times that are a constant and so much a layer, as a thin generator would have them."""

    def told(spec, job, layers):
        frames = ((40.0, 0.002 + 0.001 * layers), (400.0, 0.002 + 0.003 * layers))
        each = {"begin": 0.1 + 0.01 * layers, "frames": frames, "known": 1e-4 * layers}
        return SpeedEstimate(first=0.3, decoded=0.0, decoder=0.0, layers=None, **each)

    deep = spec.model_copy(update={"generator": spec.generator.model_copy(update={"depth": 24})})
    monkeypatch.setattr(home, "_generating", told)
    monkeypatch.setattr(home, "_some", lambda spec, job, layers: 4)
    found = measured(deep, job(deep))
    assert found.layers == (4, 24)
    assert found.at(40) == pytest.approx(0.026) and found.at(400) == pytest.approx(0.074)
    for name, value in {"begin": 0.34, "known": 24e-4, "first": 0.3}.items():
        assert getattr(found, name) == pytest.approx(value), name


def test_enough_layers_are_timed_to_be_read_from_memory(spec, monkeypatch):
    monkeypatch.setattr(home, "_processor_cache", lambda: 10**6)
    thin = {}
    for width in (64, 256, 1024):
        generator = spec.generator.model_copy(update={"width": width, "depth": 24, "heads": 4})
        whole = spec.model_copy(update={"generator": generator})
        some = thin[width] = home._some(whole, job(whole), 24)
        layer = 16 * width**2 * 4  # bytes: 4 self, 4 cross but for the width of the text, 8 feed-forward
        assert some in (2, 24) or 3e6 < some * layer < 6e6
    assert thin[64] > thin[256] >= thin[1024] == 2


def test_a_trial_of_a_real_generator(spec):
    before = torch.get_rng_state()
    for dtype in (torch.float32, torch.bfloat16):
        found = measured(spec, GenerationJob.from_request(spec, Request.from_input(["piano"] * 2, seconds=0.8), dtype=dtype))
        assert found.at(20) > 0 and found.decoded > 0 and found.begin >= 0 and found.layers == (2, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_what_was_found_is_kept_for_a_day(spec, monkeypatch, tmp_path):
    times = []
    monkeypatch.setattr(home, "measured", lambda spec, job: times.append(1) or PACE)
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path / "new"))
    assert [pace(spec, job(spec)) for _ in range(3)] == [PACE] * 3 and len(times) == 1
    pace(spec, job(spec, clips=2))
    pace(spec, GenerationJob.from_request(spec, Request.from_input("piano", seconds=2), dtype=torch.bfloat16))
    pace(spec, job(spec, guidance=1))
    assert len(times) == 4  # each is another job
    file = tmp_path / "new" / "paces.json"
    old = {key: {**value, "at": time.time() - 2 * home.KEPT} for key, value in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(old))
    pace(spec, job(spec))
    assert len(times) == 5
    for damaged in ("", "{", '{"a": 1}', "[1, 2]", '{"a": {"at": 9}}'):
        file.write_text(damaged)
        assert pace(spec, job(spec)) == PACE
    monkeypatch.setenv("CADENZA_CACHE", "off")
    monkeypatch.setattr(home, "_HELD", {})
    pace(spec, job(spec))
    pace(spec, job(spec))
    assert len(times) == 11  # the process itself remembers
