"""Turns, parts, the bound and the machine."""

from types import SimpleNamespace

import pytest
import torch
from compare import machine
from compare.measure import Runner, run_interleaved, summarize_runs

from cadenza.apps.bench import (
    BenchJob,
    MachineLimits,
    TimedRun,
    measure_limits,
    num_decoding_steps,
    step_cost,
    weight_bytes_per_step,
)
from cadenza.core.memory import peak_rss, process_rss
from cadenza.core.types import FrameFormat
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec

CPU = torch.device("cpu")


class Noted(Runner):
    """Writes down what it is asked."""

    def __init__(self, name: str, log: list[tuple[str, object]], threads: int = 1) -> None:
        self.name, self.log, self.device, self.threads = name, log, CPU, threads

    def open(self) -> None:
        self.log.append((self.name, "open"))

    def close(self) -> None:
        self.log.append((self.name, "close"))

    def run(self, job: BenchJob) -> TimedRun:
        assert torch.get_num_threads() == self.threads
        self.log.append((self.name, job.seconds))
        return TimedRun({"text": 1.0, "lm": 4.0, "codec": 5.0}, job.seconds, 20)


def test_turns_alternate_after_a_warm_second():
    log: list[tuple[str, object]] = []
    a, b = Noted("a", log), Noted("b", log, threads=2)
    runs = run_interleaved([a, b], BenchJob(30.0), {"a": 3, "b": 1}, keep=True, say=lambda line: None)
    assert [len(runs[name]) for name in "ab"] == [3, 1]
    timed = [entry for entry in log if entry[1] not in ("open", "close")]
    assert timed == [("a", 1.0), ("a", 30.0), ("b", 1.0), ("b", 30.0), ("a", 30.0), ("a", 30.0)]
    assert torch.get_num_threads() == 1


def test_one_model_at_a_time_where_memory_is_short():
    log: list[tuple[str, object]] = []
    run_interleaved([Noted("a", log), Noted("b", log)], BenchJob(2.0), {"a": 2, "b": 2}, keep=False, say=lambda line: None)
    held: set[str] = set()
    for name, what in log:
        held = held | {name} if what == "open" else held - {name} if what == "close" else held
        assert len(held) <= 1 and (what in ("open", "close") or held == {name})


def test_all_of_a_job_warms_where_graphs_are_of_one_length():
    log: list[tuple[str, object]] = []
    one = Noted("a", log)
    one.device = torch.device("cuda")
    run_interleaved([one], BenchJob(30.0), {"a": 1}, keep=True, say=lambda line: None)
    assert [what for _, what in log if what != "open"] == [30.0, 30.0]


def test_what_runs_come_to():
    runs = [TimedRun({"text": 1.0, "lm": lm, "codec": 1.0}, 30.0, 1503) for lm in (13.0, 28.0, 8.0)]
    found = summarize_runs(runs)
    assert found["steps_per_second"]["median"] == pytest.approx(1503 / 13)
    assert found["times_real_time"] == {"median": 2.0, "min": 1.0, "max": 3.0, "all": [2.0, 1.0, 3.0]}
    assert found["seconds"]["lm"]["max"] == 28.0 and found["total_seconds"]["min"] == 10.0


def small(dtype: torch.dtype = torch.bfloat16) -> CodecLM:
    """MusicGen small without numbers."""
    spec = CodecLMSpec(width=1024, depth=24, heads=16, positions="sinusoidal", end_of_sequence=False)
    with torch.device("meta"):
        return CodecLM(spec, FrameFormat("codes", 50.0, 4, 2048), {"cross": 1024}).to(dtype)


def test_steps_of_a_clip_and_of_its_windows():
    system = SimpleNamespace(generator=small(), spec=SimpleNamespace(defaults=SimpleNamespace(stride=None)))
    assert num_decoding_steps(system, 1500) == 1503  # and those that the last codebook lags behind
    assert num_decoding_steps(system, 100) == 103
    # 30 s, of the second and third window 12 s are known: 1503 + (1503 - 600) + (1200 + 3 - 600)
    assert num_decoding_steps(system, 3000) == 1503 + 903 + 603
    system.spec.defaults.stride = 10.0
    assert num_decoding_steps(system, 2000) == 1503 + (1500 + 3 - 1000)


def test_a_step_reads_what_the_arithmetic_of_the_paper_says():
    """14 d^2 a layer (self-attention 4, attention to the text 2, feed-forward 8) and the heads; norms besides."""
    d, depth = 1024, 24
    wanted = 14 * d * d * depth + 4 * 2048 * d + 2 * d * (3 * depth + 1)
    assert weight_bytes_per_step(small()) == 2 * wanted
    assert weight_bytes_per_step(small(torch.float32)) == 4 * wanted
    found = step_cost(small(), BenchJob(30.0, words=20), steps=1503)
    assert found.memory == pytest.approx(2 * 2 * depth * 2 * d * (1500 / 2 + 21), rel=1e-6)
    assert found.operations == pytest.approx(2 * 2 * (14 * d * d * depth + 4 * 2048 * d), rel=0.12)  # and attention


def test_the_bound_is_that_of_the_slower_of_memory_and_arithmetic():
    found = step_cost(small(), BenchJob(30.0), steps=1503)
    memory = MachineLimits(read=43e9, copy=40e9, float32=1e15, bfloat16=1e15)
    assert found.roofline_steps_per_second(memory) == pytest.approx(43e9 / (found.weights + found.memory))
    assert 45 < found.roofline_steps_per_second(memory) < 55  # 871 MB a step
    assert found.roofline_steps_per_second(MachineLimits(1e15, 1e15, 100e9, 200e9)) == pytest.approx(200e9 / found.operations)
    many = step_cost(small(), BenchJob(30.0, batch=32), steps=1503)
    assert many.operations == pytest.approx(32 * found.operations) and many.weights == found.weights
    assert many.memory == pytest.approx(32 * found.memory)


def test_the_machine_is_measured():
    found = measure_limits(CPU, quick=True, tries=2)
    assert min(found.read, found.copy, found.float32, found.bfloat16) > 1e8
    assert found.bandwidth == max(found.read, found.copy)
    assert (
        found.max_with(MachineLimits(1e20, 0, 0, 0)).read == 1e20
        and found.max_with(MachineLimits(1e20, 0, 0, 0)).copy == found.copy
    )
    said = machine.describe_machine(CPU)
    assert said["cores"] >= 1 and said["memory_bytes"] > 2**30 and said["versions"]["torch"]
    assert machine.machine_id(CPU) == f"cpu-{said['cores']}-cores"


def test_peak_memory_counts_what_was_let_go():
    before = peak_rss()
    there = torch.ones(2**26)  # 256 MB, touched
    assert process_rss() >= 2**28
    del there
    assert peak_rss() >= 2**28 and peak_rss() >= before
