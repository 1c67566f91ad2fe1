"""Measure: what is asked of those that are compared, the clock, and turns."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from cadenza.apps.bench.geometry import dummy_prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchJob:
    """Clips of `seconds`, `batch` of them, under `branches` answers of guidance, from a prompt of `words` tokens."""

    seconds: float
    batch: int = 1
    branches: int = 2
    words: int = 20

    def items(self) -> list[dict[str, str]]:
        return [{"prompt": dummy_prompt(self.words)} for _ in range(self.batch)]


@dataclass(frozen=True)
class TimedRun:
    """Seconds of one run by part; `steps` are those of the language model, `audio` seconds of sound that were made."""

    parts: Mapping[str, float]
    audio: float
    steps: int = 0

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def rate(self) -> float:
        """Steps of the language model a second; 0 where there is none."""
        return self.steps / self.parts["lm"] if self.steps else 0.0

    @property
    def realtime_factor(self) -> float:
        """Times real time, from the text to the last sample."""
        return self.audio / self.total


class Runner(ABC):
    """A library with a model in one form; open only while it is needed."""

    name: str
    device: torch.device
    threads: int

    @abstractmethod
    def open(self) -> None:
        """Reads the model, unless it is open."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of its memory."""

    def warmup_job(self, job: BenchJob) -> BenchJob:
        """What warms it for a job: a second of that, or all on a GPU, where what is recorded beforehand is of one length."""
        return job if self.device.type == "cuda" else replace(job, seconds=min(1.0, job.seconds))

    @abstractmethod
    def run(self, job: BenchJob) -> TimedRun:
        """The clips of a job, timed."""

    def timed(self, job: BenchJob) -> TimedRun:
        """A run with the number of threads that belongs to it."""
        with torch_threads(self.threads):
            return self.run(job)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Lets torch compute with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronized_time(device: torch.device) -> float:
    """The clock, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def run_interleaved(
    contestants: Sequence[Runner], job: BenchJob, repeats: Mapping[str, int], *, keep: bool, say: Say = print
) -> dict[str, list[TimedRun]]:
    """Every contestant in turn until each has had its repeats, so that what else the machine does falls on all.

    Each is warmed before it is timed. Without `keep` there is one model in memory at a time.
    """
    found: dict[str, list[TimedRun]] = {one.name: [] for one in contestants}
    for turn in range(max(repeats.values(), default=0)):
        for one in contestants:
            if turn >= repeats[one.name]:
                continue
            if turn == 0 or not keep:
                one.open()
                one.timed(one.warmup_job(job))
            run = one.timed(job)
            found[one.name].append(run)
            steps = f"{run.rate:.2f} steps/s, " if run.steps else ""
            say(f"{one.name}: {steps}{run.realtime_factor:.3f}x real time ({run.total:.1f} s, turn {turn + 1})")
            if not keep:
                one.close()
    return found


def summarize_values(values: Sequence[float]) -> dict[str, Any]:
    """The median, the least, the greatest and all values."""
    return {"median": median(values), "min": min(values), "max": max(values), "all": list(values)}


def summarize_runs(runs: Sequence[TimedRun]) -> dict[str, Any]:
    """What several runs of one job come to."""
    found = {
        "audio_seconds": runs[0].audio,
        "times_real_time": summarize_values([run.realtime_factor for run in runs]),
        "seconds": {name: summarize_values([run.parts[name] for run in runs]) for name in runs[0].parts},
        "total_seconds": summarize_values([run.total for run in runs]),
    }
    if runs[0].steps:
        found |= {"steps": runs[0].steps, "steps_per_second": summarize_values([run.rate for run in runs])}
    return found
