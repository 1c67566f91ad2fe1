"""Runners of the compared libraries, timed in turn."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from cadenza.apps.bench import BenchJob, TimedRun

Say = Callable[[str], None]


class Runner(ABC):
    """A library with a model in one variant; its model is loaded only while it is needed."""

    name: str
    device: torch.device
    threads: int

    @abstractmethod
    def open(self) -> None:
        """Load the model, unless it is loaded."""

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory."""

    def warmup_job(self, job: BenchJob) -> BenchJob:
        """Return the warm-up job: one second, or the whole job on a GPU, whose captured graphs depend on the length."""
        return job if self.device.type == "cuda" else replace(job, seconds=min(1.0, job.seconds))

    @abstractmethod
    def run(self, job: BenchJob) -> TimedRun:
        """Generate the clips of a job, timed."""

    def timed(self, job: BenchJob) -> TimedRun:
        """Run a job with this runner's number of threads."""
        with torch_threads(self.threads):
            return self.run(job)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of torch threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_interleaved(
    runners: Sequence[Runner], job: BenchJob, repeats: Mapping[str, int], *, keep: bool, say: Say = print
) -> dict[str, list[TimedRun]]:
    """Run all in turn until each has had its repeats, so that other load on the machine affects all of them.

    Each is warmed up before it is timed. Without `keep`, one model is in memory at a time.
    """
    runs: dict[str, list[TimedRun]] = {one.name: [] for one in runners}
    for turn in range(max(repeats.values(), default=0)):
        for one in runners:
            if turn >= repeats[one.name]:
                continue
            if turn == 0 or not keep:
                one.open()
                one.timed(one.warmup_job(job))
            run = one.timed(job)
            runs[one.name].append(run)
            steps = f"{run.steps_per_second:.2f} steps/s, " if run.steps else ""
            say(f"{one.name}: {steps}{run.realtime_factor:.3f}x real time ({run.total:.1f} s, turn {turn + 1})")
            if not keep:
                one.close()
    return runs


def summarize_values(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the minimum, the maximum and all values."""
    return {"median": median(values), "min": min(values), "max": max(values), "all": list(values)}


def summarize_runs(runs: Sequence[TimedRun]) -> dict[str, Any]:
    """Summarize several runs of one job."""
    found = {
        "audio_seconds": runs[0].audio,
        "times_real_time": summarize_values([run.realtime_factor for run in runs]),
        "seconds": {name: summarize_values([run.parts[name] for run in runs]) for name in runs[0].parts},
        "total_seconds": summarize_values([run.total for run in runs]),
    }
    if runs[0].steps:
        found |= {"steps": runs[0].steps, "steps_per_second": summarize_values([run.steps_per_second for run in runs])}
    return found
