"""Curves: what clips cost against their length, their number, the branches of guidance, the length of the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cadenza.apps.bench import BenchJob
from cadenza.core.errors import BenchmarkError
from cadenza.core.spec import did_you_mean
from cadenza.dsp.plots import new_figure, save_figure
from compare.measure import Runner, Say
from compare.peer import TransformersRunner

PATIENCE = 60.0  # seconds that a point of the peer may take


@dataclass(frozen=True)
class SweepAxis:
    """A field of a job that is varied, the others as in `job`."""

    field: str
    label: str
    values: tuple[float, ...]
    job: BenchJob


AXES = {
    "length": SweepAxis("seconds", "seconds of the clip", (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0), BenchJob(1.0)),
    "batch": SweepAxis("batch", "clips at a time", (1, 2, 4, 8, 16, 32), BenchJob(2.0)),
    "guidance": SweepAxis("branches", "branches of guidance", (1, 2, 3), BenchJob(4.0)),
    "prompt": SweepAxis("words", "tokens of the prompt", (5, 20, 60, 120, 250), BenchJob(4.0)),
}
_QUICK: dict[str, tuple[float, ...]] = {"length": (0.2, 0.4), "batch": (1, 2), "guidance": (1, 2, 3), "prompt": (5, 20)}


def sweep_axis(name: str, *, quick: bool = False) -> SweepAxis:
    """The axis of that name; tiny where it shall be `quick`."""
    if name not in AXES:
        raise BenchmarkError(f"unknown curve '{name}'.{did_you_mean(name, list(AXES))}")
    found = AXES[name]
    return replace(found, values=_QUICK[name], job=replace(found.job, seconds=0.2)) if quick else found


def run_curve(axis: SweepAxis, contestants: Sequence[Runner], *, say: Say = print) -> dict[str, Any]:
    """Each contestant at each value, in turn, after a run that warms it; what takes the peer too long is left out."""
    points: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contestants}
    left_out: list[str] = []
    for value, job in _jobs(axis):
        for one in contestants:
            if isinstance(one, TransformersRunner) and (reason := _too_much(axis, value, job, points[one.name])):
                left_out.append(f"{one.name} at {value:g}: {reason}")
                continue
            if not points[one.name] or one.device.type == "cuda":
                one.timed(one.warmup_job(job))
            run = one.timed(job)
            point = {
                "at": value,
                "total": run.total,
                "times_real_time": run.realtime_factor,
                "steps_per_second": run.steps_per_second,
            }
            points[one.name].append(point | {"seconds": dict(run.parts)})
            say(f"{axis.label} {value:g}, {one.name}: {run.steps_per_second:.2f} steps/s, {run.realtime_factor:.3f}x real time")
    return {"axis": axis.label, "job": axis.job.__dict__, "points": points, "left_out": left_out}


def _jobs(axis: SweepAxis) -> Iterator[tuple[float, BenchJob]]:
    for value in axis.values:
        yield value, replace(axis.job, **{axis.field: value})


def _too_much(axis: SweepAxis, value: float, job: BenchJob, points: Sequence[dict[str, Any]]) -> str:
    """Why a point of the peer is left out, judged by the one before; empty where it is not."""
    if job.branches > 2:
        return "it has no such guidance"
    if axis.field == "seconds" and job.seconds > 30:
        return "it makes no clips beyond its context"
    if points and points[-1]["total"] * value / points[-1]["at"] > PATIENCE:
        return f"it might take more than {PATIENCE:g} s"
    return ""


def plot_curve(curve: dict[str, Any], title: str, path: Path) -> None:
    """Times real time, of all clips together, against what is varied."""
    drawn = new_figure((7, 4))
    axes = drawn.add_subplot()
    for name, points in curve["points"].items():
        if points:
            axes.plot([one["at"] for one in points], [one["times_real_time"] for one in points], marker="o", label=name)
    values = sorted({one["at"] for points in curve["points"].values() for one in points})
    if len(values) > 1 and values[-1] >= 8 * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.axhline(1.0, color="#888888", linewidth=0.8)
    axes.set(xlabel=curve["axis"], ylabel="seconds of sound a second", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(drawn, path)
