"""Jobs in little memory: the same clips in smaller groups, or an error that names what would fit."""

import re

import pytest
import torch
from tiny import tiny_system

from cadenza.core.errors import RequestError
from cadenza.core.memory import parse_bytes
from cadenza.system import system as home
from cadenza.system.outline import estimator_for_unloaded
from cadenza.system.planner import SPARE, BatchPlan, GenerationJob, estimate_memory, plan_within_memory, split_request
from cadenza.system.request import Request

MIB = 2**20


@pytest.fixture(scope="module")
def system():
    return tiny_system()


@pytest.fixture(scope="module")
def needing(system):
    return estimator_for_unloaded(system.spec, program=lambda: 100 * MIB, stored=0)


def asked(system, clips=8, seconds=1.8, **how) -> GenerationJob:
    return GenerationJob.from_request(system.spec, Request.from_input(["piano"] * clips, seconds=seconds), **how)


def test_with_room_all_is_done_at_once(system, needing):
    for room in (None, 2**40):
        fit = plan_within_memory(system.spec, asked(system), needing, room=room, narrow=True)
        assert fit.course == BatchPlan(8) and fit.job.dtype == torch.float32 and not fit.why


def test_with_less_room_in_groups_and_then_in_bfloat16(system, needing):
    job = asked(system)
    four, alone = (needing(job, BatchPlan(n, 24)).peak for n in (4, 1))
    some = plan_within_memory(system.spec, job, needing, room=int(four * SPARE) + 1, narrow=True)
    assert some.course.batch_size == 4 and some.job.dtype == torch.float32
    assert some.why.startswith("4 of 8 clips at a time") and some.needs.peak <= four
    least = plan_within_memory(system.spec, job, needing, room=int(alone * SPARE) - 10_000, narrow=True)
    assert least.job.dtype == torch.bfloat16 and "in bfloat16, as float32 does not fit" in least.why
    with pytest.raises(RequestError, match="--half"):  # where that was not to be chosen, it is proposed
        plan_within_memory(system.spec, job, needing, room=int(alone * SPARE) - 10_000)


def test_what_is_proposed_fits(system, needing):
    job = asked(system, clips=40, seconds=60)
    room = int(needing(asked(system, clips=10, seconds=60), BatchPlan(1, 24)).peak * SPARE)
    with pytest.raises(RequestError, match="too little memory: .* are needed at least") as refusal:
        plan_within_memory(system.spec, job, needing, room=room, narrow=True)
    said = str(refusal.value)
    seconds, clips = (int(re.search(pattern, said)[1]) for pattern in (r"up to (\d+) s", r"(\d+) clips? instead of 40"))
    assert 1 < seconds < 60 and 10 <= clips < 40

    def fits(**change) -> bool:
        try:
            plan_within_memory(
                system.spec, asked(system, **{"clips": 40, "seconds": 60, **change}), needing, room=room, narrow=True
            )
        except RequestError:
            return False
        return True

    assert fits(seconds=seconds) and not fits(seconds=seconds + 2)
    assert fits(clips=clips) and not fits(clips=clips + 1)


def test_nothing_fits_where_the_program_does_not(system, needing):
    with pytest.raises(RequestError, match="program 1.. MB.*50 MB are there; nothing of this model fits"):
        plan_within_memory(system.spec, asked(system), needing, room=parse_bytes("50MB"), narrow=True)


def test_a_system_refuses_before_it_takes_anything(system, monkeypatch):
    monkeypatch.setattr(home, "available_memory_on", lambda device: MIB)
    monkeypatch.setattr(system.generator, "stream", None)
    with pytest.raises(RequestError, match="too little memory") as refusal:
        system.generate(["piano"] * 4, seconds=100)
    assert "--quantize" not in str(refusal.value)  # it is loaded already
    assert "clips of up to" in str(refusal.value)


def test_clips_are_the_same_in_groups(system, monkeypatch):
    fields = {
        "seconds": [0.5, 0.3, 0.4, 0.2, 0.5],
        "seed": [3, 1, 4, 1, 5],
        "guidance": {"scale": 2, "negative": ["drums", "bass", "organ", "flute", "oboe"]},
    }
    items = ["piano", {"prompt": "drums", "tempo": 90}, None, {"key": "A minor"}, "violin"]
    told = []
    together = system.generate(items, progress=lambda done, total: told.append(done / total), **fields)
    job = GenerationJob.from_request(system.spec, Request.from_input(items, **fields))
    room = estimate_memory(system, job, BatchPlan(2, 24)).phases["generating"]
    monkeypatch.setattr(home, "available_memory_on", lambda device: int(sum(room.values()) * 1.2))
    assert 1 < system.plan(items, **fields).course.batch_size < 5
    told_in_groups = []
    apart = system.generate(items, progress=lambda done, total: told_in_groups.append(done / total), **fields)
    assert apart.lengths.tolist() == together.lengths.tolist()
    torch.testing.assert_close(apart.wave, together.wave, atol=1e-5, rtol=1e-4)
    for each in (told, told_in_groups):
        assert each == sorted(each) and each[-1] == 1


def test_groups_of_a_request(system):
    beginning = tiny_system().generate(None, seconds=0.1)
    request = Request.from_input(
        ["a", "b"], variations=2, seed=7, seconds=(1, 2), continue_from=[beginning, None], guidance={"negative": "c"}
    )
    parts = split_request(request, 3)
    assert [len(part.expand()) for part in parts] == [3, 1]
    for whole, own in zip(request.expand(), [clip for part in parts for clip in part.expand()], strict=True):
        assert (own.item, own.seconds, own.seed) == (whole.item, whole.seconds, whole.seed)
        assert own.continue_from is whole.continue_from
    assert [each for part in parts for each in part.negative_items() or ()] == request.negative_items()
    assert split_request(request, 4) == [request]
