"""Memory that is planned against tensors that are allocated, batches that fit, and times of recorded runs."""

import json
import re
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny import TINY, tiny_system
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cadenza.apps.cli.plan import build_on_meta
from cadenza.codecs.encodec import EncodecSpec
from cadenza.codecs.oobleck_vae import OobleckSpec
from cadenza.core.errors import RequestError
from cadenza.core.memory import parse_bytes
from cadenza.core.types import Codes, Latents
from cadenza.nn import weight_quantization as packing
from cadenza.nn.transformer import Transformer
from cadenza.system import planner
from cadenza.system import system as system_module
from cadenza.system.planner import (
    MEMORY_MARGIN,
    BatchPlan,
    GenerationJob,
    MemoryEstimate,
    Plan,
    estimate_elapsed,
    estimate_memory,
    plan_within_memory,
    record_run,
    split_request,
)
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec

MIB = 2**20


@pytest.fixture(scope="module")
def system():
    return tiny_system()


@pytest.fixture(scope="module")
def estimate(system):
    """The estimate of an unloaded system in a program that takes 100 MiB itself."""
    outline = cache(lambda dtype, quantize: build_on_meta(system.spec, dtype=dtype, quantize=quantize))
    return lambda job, batch_plan: estimate_memory(
        outline(job.dtype, job.quantize), job, batch_plan, program=100 * MIB, stored=0
    )


class Live(TorchDispatchMode):
    """The most bytes that tensors made here held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and (place := x.untyped_storage()._cdata) not in known | self.seen:
                self.seen.add(place)
                self.now += (size := x.untyped_storage().nbytes())
                self.peak = max(self.peak, self.now)
                weakref.finalize(x.untyped_storage(), self._gone, place, size)
        return made

    def _gone(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.now -= size


def job(system, request, **fields) -> GenerationJob:
    return GenerationJob.from_request(system.spec, Request.from_input(request, **fields))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_system(dtype):
    real = tiny_system().to(dtype)
    estimate = estimate_memory(build_on_meta(real.spec, dtype=dtype), job(real, "piano"), BatchPlan(1)).persistent
    for name, part in (("codec", real.codec), ("conditioners", real.conditioners), ("generator", real.generator)):
        assert estimate[f"{name} weights"] == sum(x.nbytes for x in (*part.parameters(), *part.buffers()))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_are_those_of_the_system(kind):
    wide = {**TINY, "generator": {**TINY["generator"], "width": 64}}
    wide["conditioners"] = {name: {**part, "output_dim": 64} for name, part in TINY["conditioners"].items()}
    spec = SystemSpec.parse(wide)
    from cadenza.system.system import System

    real = System(spec).quantize(kind)
    estimate = estimate_memory(build_on_meta(spec, quantize=kind), job(real, "piano"), BatchPlan(1)).persistent[
        "generator weights"
    ]
    assert estimate == sum(x.nbytes for x in (*real.generator.parameters(), *real.generator.buffers()))
    assert estimate < estimate_memory(build_on_meta(spec), job(real, "piano"), BatchPlan(1)).persistent["generator weights"] / 2


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ("piano", {"seconds": 0.4}),
        (["piano", "drums", None], {"seconds": [0.1, 0.3, 0.2]}),
        ({"prompt": "piano", "tempo": 90}, {"seconds": 0.2, "guidance": {"scale": 3, "id_scales": {"tempo": 2}}}),
        (None, {"seconds": 0.2}),
        ("piano", {"seconds": 0.2, "guidance": 1}),
        ("piano", {"seconds": 0.2, "guidance": {"scale": 3, "negative": "drums"}, "two_step_cfg": True}),
        ("piano", {"seconds": 0.3, "variations": 3}),
    ],
)
def test_keys_and_values_are_those_that_are_made(system, monkeypatch, request_, fields):
    """The branches of guidance too, which are rows of them."""
    made = []
    plain = Transformer.allocate_kv_cache

    def watched(transformer, batch, positions):
        cache = plain(transformer, batch, positions)
        made.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache))
        return cache

    monkeypatch.setattr(Transformer, "allocate_kv_cache", watched)
    asked = job(system, request_, **fields)
    system.generate(request_, **fields)
    estimate = estimate_memory(system, asked, BatchPlan(len(asked.frames))).phases["generating"]["keys and values"]
    prefix = asked.branches * len(asked.frames) * 64 * 2 * 2 * 16 * 4  # tokens that stand in front are foreseen, not known
    assert abs(estimate - sum(made)) <= prefix
    assert estimate == pytest.approx(sum(made), rel=0.2)


def test_packed_matrices_are_those_that_are_made(system):
    twin = packing.pack_linears(system.generator, 2)
    made = [part.packed for part in twin.modules() if isinstance(part, packing.PackedLinear)]
    assert made and packing.packed_bytes(system.generator, 2) == sum(x.numel() * x.element_size() for x in made)
    assert packing.packed_bytes(system.generator, 2, device="cuda") == 0
    assert packing.packed_bytes(build_on_meta(system.spec, dtype=torch.bfloat16).generator, 2) == 0


@pytest.mark.parametrize(
    ("spec", "frames", "clips"),
    [
        (EncodecSpec(sample_rate=24000, filters=16), 60, 1),
        (EncodecSpec(sample_rate=24000, filters=16), 30, 3),
        (
            EncodecSpec(sample_rate=32000, strides=(8, 5, 4, 4), filters=16, causal=False, pad_mode="reflect", lstm_layers=1),
            60,
            1,
        ),
        (
            EncodecSpec(sample_rate=24000, strides=(3, 4, 5, 8), widths=(16, 48, 96, 192, 384), residual_layers=(0, 1, 1, 1)),
            60,
            1,
        ),
        (OobleckSpec(sample_rate=44100, encoder={"filters": 8}), 12, 1),
    ],
)
def test_a_codec_holds_about_what_it_says(spec, frames, clips):
    """Torch sees none of the copies that a convolution makes inside itself."""
    codec = spec.build().eval().requires_grad_(False)
    rows = spec.frame_format.channels
    given = Codes(torch.zeros(clips, rows, frames, dtype=torch.long))
    if spec.frame_format.kind == "latents":
        given = Latents(torch.zeros(clips, rows, frames))
    with Live() as live:
        codec.decode(given)
    said = spec.decode_memory_bytes(frames, clips=clips, itemsize=4)
    weights = sum(x.nbytes for x in codec.decoder.parameters())
    assert 0.5 * (live.peak - weights) < said < 3 * live.peak


def test_more_never_takes_less(system):
    def peak(course: BatchPlan | None = None, **fields) -> int:
        clips = fields.pop("clips", 2)
        return estimate_memory(
            system, job(system, [{"prompt": "piano", "tempo": 90}] * clips, **fields), course or BatchPlan(8)
        ).peak

    assert peak(seconds=1) < peak(seconds=2) < peak(seconds=30) < peak(seconds=60)
    assert peak(clips=1) < peak(clips=2) < peak(clips=8)
    assert peak(guidance=1) < peak(guidance=3) < peak(guidance={"scale": 3, "id_scales": {"tempo": 2}})
    assert peak(BatchPlan(1), clips=8) < peak(BatchPlan(4), clips=8) < peak(BatchPlan(8), clips=8)
    deep = SystemSpec.parse({**TINY, "generator": {**TINY["generator"], "depth": 4}})
    assert (
        estimate_memory(build_on_meta(deep), job(system, "piano"), BatchPlan(1)).peak
        > estimate_memory(build_on_meta(system.spec), job(system, "piano"), BatchPlan(1)).peak
    )


def test_the_program_and_what_is_read_count(system):
    sizes = estimate_memory(system, job(system, "piano"), BatchPlan(1))
    assert estimate_memory(system, job(system, "piano"), BatchPlan(1), program=10**9).peak == sizes.peak + 10**9
    large = estimate_memory(system, job(system, "piano"), BatchPlan(1), stored=10**9)
    assert large.peak_phase == "loading" and large.peak > 10**9 > sizes.peak
    assert sum(large.breakdown().values()) == large.peak


def clips_job(system, clips=8, seconds=1.8, **how) -> GenerationJob:
    return GenerationJob.from_request(system.spec, Request.from_input(["piano"] * clips, seconds=seconds), **how)


def test_with_max_bytes_all_is_done_at_once(system, estimate):
    for max_bytes in (None, 2**40):
        plan = plan_within_memory(clips_job(system), estimate, max_bytes=max_bytes, allow_bfloat16=True)
        assert plan.batch_plan == BatchPlan(8) and plan.job.dtype == torch.float32 and not plan.reason


def test_with_less_max_bytes_in_groups_and_then_in_bfloat16(system, estimate):
    job = clips_job(system)
    four, alone = (estimate(job, BatchPlan(n, 24)).peak for n in (4, 1))
    some = plan_within_memory(job, estimate, max_bytes=int(four * MEMORY_MARGIN) + 1, allow_bfloat16=True)
    assert some.batch_plan.batch_size == 4 and some.job.dtype == torch.float32
    assert some.reason.startswith("4 of 8 clips at a time") and some.memory.peak <= four
    least = plan_within_memory(job, estimate, max_bytes=int(alone * MEMORY_MARGIN) - 10_000, allow_bfloat16=True)
    assert least.job.dtype == torch.bfloat16 and "bfloat16, as float32 does not fit in memory" in least.reason
    with pytest.raises(RequestError, match="--half"):  # where that was not to be chosen, it is proposed
        plan_within_memory(job, estimate, max_bytes=int(alone * MEMORY_MARGIN) - 10_000)


def test_what_is_proposed_fits(system, estimate):
    job = clips_job(system, clips=40, seconds=60)
    max_bytes = int(estimate(clips_job(system, clips=10, seconds=60), BatchPlan(1, 24)).peak * MEMORY_MARGIN)
    with pytest.raises(RequestError, match="too little memory: at least .* needed") as refusal:
        plan_within_memory(job, estimate, max_bytes=max_bytes, allow_bfloat16=True)
    said = str(refusal.value)
    seconds, clips = (int(re.search(pattern, said)[1]) for pattern in (r"up to (\d+) s", r"(\d+) clips? instead of 40"))
    assert 1 < seconds < 60 and 10 <= clips < 40

    def fits(**change) -> bool:
        try:
            plan_within_memory(
                clips_job(system, **{"clips": 40, "seconds": 60, **change}),
                estimate,
                max_bytes=max_bytes,
                allow_bfloat16=True,
            )
        except RequestError:
            return False
        return True

    assert fits(seconds=seconds) and not fits(seconds=seconds + 2)
    assert fits(clips=clips) and not fits(clips=clips + 1)


def test_nothing_fits_where_the_program_does_not(system, estimate):
    with pytest.raises(RequestError, match="program 1.. MB.*50 MB available; nothing of this model fits"):
        plan_within_memory(clips_job(system), estimate, max_bytes=parse_bytes("50MB"), allow_bfloat16=True)


def test_a_system_refuses_before_it_takes_anything(system, monkeypatch):
    monkeypatch.setattr(system_module, "available_memory_on", lambda device: MIB)
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
    max_bytes = estimate_memory(system, job, BatchPlan(2, 24)).phases["generating"]
    monkeypatch.setattr(system_module, "available_memory_on", lambda device: int(sum(max_bytes.values()) * 1.2))
    assert 1 < system.plan(items, **fields).batch_plan.batch_size < 5
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


def run_plan(system, **options) -> Plan:
    clips = options.pop("clips", 1)
    request = Request.from_input(["piano"] * clips, seconds=0.8)
    job = GenerationJob.from_request(system.spec, request, **options)
    return Plan(job, BatchPlan(clips), MemoryEstimate({}, {}))


def test_elapsed_time_is_the_median_of_recorded_runs(system, monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path / "new"))
    plan = run_plan(system)
    assert estimate_elapsed(system.spec, plan) is None
    for factor in (2.0, 8.0, 4.0):
        record_run(system.spec, plan, factor)
    audio = sum(plan.job.frames) / system.spec.codec.frame_format.frame_rate
    assert estimate_elapsed(system.spec, plan) == (pytest.approx(audio / 4.0), 3)
    twice = replace(plan, job=replace(plan.job, frames=(2 * plan.job.frames[0],)))
    assert estimate_elapsed(system.spec, twice) == (pytest.approx(2 * audio / 4.0), 3)


def test_only_recent_runs_count(system, monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path))
    for factor in [100.0] * 5 + [2.0] * planner.RECENT_RUNS:
        record_run(system.spec, run_plan(system), factor)
    audio = sum(run_plan(system).job.frames) / system.spec.codec.frame_format.frame_rate
    assert estimate_elapsed(system.spec, run_plan(system)) == (pytest.approx(audio / 2), planner.RECENT_RUNS)


def test_runs_of_another_kind_do_not_count(system, monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path))
    record_run(system.spec, run_plan(system, clips=3), 2.0)
    assert estimate_elapsed(system.spec, run_plan(system, clips=4))  # batches of 3 and 4 clips are of one kind
    deep = SystemSpec.parse({**TINY, "generator": {**TINY["generator"], "depth": 4}})
    for spec, plan in (
        (system.spec, run_plan(system, clips=5)),
        (system.spec, run_plan(system, clips=4, dtype=torch.bfloat16)),
        (system.spec, run_plan(system, clips=4, quantize="int8")),
        (deep, run_plan(system, clips=4)),
    ):
        assert estimate_elapsed(spec, plan) is None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert estimate_elapsed(system.spec, run_plan(system, clips=4)) is None
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"key": 5}', '{"key": ["fast"]}', "\xff"])
def test_a_damaged_file_of_runs_is_replaced(system, monkeypatch, tmp_path, content):
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path))
    (tmp_path / "runs.json").write_text(content, encoding="latin-1")
    assert estimate_elapsed(system.spec, run_plan(system)) is None
    record_run(system.spec, run_plan(system), 2.0)
    assert estimate_elapsed(system.spec, run_plan(system))[1] == 1
    assert [*json.loads((tmp_path / "runs.json").read_text()).values()] == [[2.0]]


def test_runs_are_not_recorded_without_a_cache_folder(system, monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_CACHE", "off")
    record_run(system.spec, run_plan(system), 2.0)
    assert estimate_elapsed(system.spec, run_plan(system)) is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path / "file" / "folder"))
    record_run(system.spec, run_plan(system), 2.0)
    assert estimate_elapsed(system.spec, run_plan(system)) is None


def test_the_number_of_kinds_of_runs_is_limited(system, monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path))
    monkeypatch.setattr(planner, "MAX_RUN_KEYS", 2)
    for clips in (1, 2, 4):
        record_run(system.spec, run_plan(system, clips=clips), 2.0)
    assert estimate_elapsed(system.spec, run_plan(system)) is None
    assert estimate_elapsed(system.spec, run_plan(system, clips=4))
