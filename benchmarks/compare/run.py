"""Bench: one run that builds, checks, times and compares."""

import datetime
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cadenza.apps.bench import BenchJob, MachineLimits, TimedRun, measure_limits, step_cost
from cadenza.core.errors import BenchmarkError
from compare import codec_runners as sound
from compare import machine
from compare.cadenza_runner import CadenzaRunner, check_variant, prepare_variant
from compare.curves import run_curve, sweep_axis
from compare.equality import check_equal_output
from compare.geometry import ModelGeometry, geometry, list_geometries, write
from compare.measure import Runner, Say, run_interleaved, summarize_runs, summarize_values, torch_threads
from compare.memory import fits_in_memory
from compare.peer import TransformersConfig, TransformersRunner
from compare.processes import SubprocessJob, run_in_subprocess
from compare.sweep import run_sweep, sweep_configs
from compare.targets import check_targets

CHECKED = 2.0  # seconds of audio that are shown to be equal
ONE_THREAD = 50_000_000  # parameters below which the second thread costs more than it gives


@dataclass(frozen=True)
class BenchConfig:
    """What a run shall measure."""

    model: str
    seconds: float = 30.0
    variants: tuple[str, ...] = ("float32", "int8", "int4")
    peers: tuple[TransformersConfig, ...] = (TransformersConfig(),)
    repeats: int = 3
    peer_repeats: int = 1
    threads: int = 0  # 0: all cores
    device: str = "cpu"
    quick: bool = False
    fresh: bool = True
    curves: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Place:
    """Where a run takes place."""

    wish: BenchConfig
    folder: Path
    device: torch.device
    threads: int
    say: Say


def run_benchmark(wish: BenchConfig, *, say: Say = print) -> dict[str, Any]:
    """The report of a run, as the JSON has it."""
    for name in wish.curves:
        sweep_axis(name)  # says what there is not before the long part
    for variant in wish.variants:
        check_variant(variant)
    with _placed(wish, say) as place:
        report = _opening(place)
        before = measure_limits(place.device, quick=wish.quick)
        if wish.model not in list_geometries():
            _music(place, None, report, before)
        elif (shape := geometry(wish.model, quick=wish.quick)).decoder is None:
            _codec(place, shape, report, before)
        else:
            _music(place, shape, report, before)
    return report | {"targets": check_targets(report)}


def sweep(wish: BenchConfig, *, say: Say = print) -> dict[str, Any]:
    """The report of a sweep over the configurations of the peer."""
    with _placed(wish, say) as place:
        report = _opening(place)
        shape = geometry(wish.model, quick=wish.quick)
        if shape.decoder is None:
            raise BenchmarkError("a sweep is of a language model; a codec has one configuration")
        fits_in_memory(shape, (), (TransformersConfig(),), place.device)
        write(shape, place.folder / "model")
        jobs = (BenchJob(wish.seconds / 4), BenchJob(wish.seconds))
        configs = sweep_configs(place.device, compiled=not wish.quick)
        found = run_sweep(place.folder / "model", configs, device=place.device, threads=place.threads, jobs=jobs, say=say)
    return report | {"sweep": found}


@contextmanager
def _placed(wish: BenchConfig, say: Say) -> Iterator[_Place]:
    device = torch.device(wish.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("torch sees no GPU here; use --device cpu")
    threads = wish.threads or machine.cpu_count()
    with torch_threads(threads), tempfile.TemporaryDirectory(prefix="cadenza-bench-") as folder:
        yield _Place(wish, Path(folder), device, threads, say)


def _opening(place: _Place) -> dict[str, Any]:
    return {
        "model": place.wish.model,
        "quick": place.wish.quick,
        "device": place.device.type,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/compare", *sys.argv[1:]]),
        "machine": machine.describe_machine(place.device),
        "threads": place.threads,
    }


def _music(place: _Place, shape: ModelGeometry | None, report: dict[str, Any], before: MachineLimits) -> None:
    """A language model and its codec: a geometry, or a model that is ours alone."""
    wish, say, where = place.wish, place.say, {"device": place.device, "threads": place.threads}
    source: str | Path = wish.model
    peer_configs = wish.peers if shape is not None else ()
    keep = True
    if shape is not None:
        keep = fits_in_memory(shape, wish.variants, peer_configs, place.device)
        say(f"drawing random weights of {wish.model}{', tiny' if wish.quick else ''}")
        source = place.folder / "model"
        write(shape, source)
        report["parameters"] = shape.parameters
    job = BenchJob(wish.seconds)
    report["job"] = asdict(job)
    if peer_configs:
        sides = CadenzaRunner(source, "float32", **where), TransformersRunner(Path(source), TransformersConfig(), **where)
        report["equal"] = check_equal_output(*sides, min(CHECKED, wish.seconds))
        say(f"greedy float32 audio is the same, to {report['equal']['max_abs_difference']:.2g}")
    ours = [CadenzaRunner(prepare_variant(source, variant, place.folder), variant, **where) for variant in wish.variants]
    if shape is None and not wish.threads and _small(ours):
        for one in ours:
            one.threads = 1
    peers = [TransformersRunner(Path(source), config, **where) for config in peer_configs]
    contestants: list[Runner] = [*ours, *peers]
    repeats = {one.name: wish.repeats for one in ours} | {one.name: wish.peer_repeats for one in peers}
    runs = run_interleaved(contestants, job, repeats, keep=keep, say=say)
    bounds = before.max_with(measure_limits(place.device, quick=wish.quick))
    report |= {"bounds": asdict(bounds) | {"bandwidth": bounds.bandwidth}}
    report["results"] = {name: summarize_runs(each) for name, each in runs.items()}
    for one in ours:
        report["results"][one.name] |= _beside(one, job, runs, bounds, peers) | {"threads": one.threads}
        report["results"][one.name]["first_sound"] = summarize_values(
            [one.time_to_first_audio(job) for _ in range(wish.repeats)]
        )
        if not keep:
            one.close()
    if wish.curves:
        measured = _chosen(ours, peers, runs)
        report["curves"] = {name: run_curve(sweep_axis(name, quick=wish.quick), measured, say=say) for name in wish.curves}
    for one in contestants:
        one.close()
    if wish.fresh:
        report["fresh"] = dict(_fresh(place, ours, peers))


def _small(ours: Sequence[CadenzaRunner]) -> bool:
    return bool(ours) and sum(x.numel() for x in ours[0].system.parameters()) < ONE_THREAD


def _beside(
    one: CadenzaRunner,
    job: BenchJob,
    runs: dict[str, list[TimedRun]],
    bounds: MachineLimits,
    peers: Sequence[TransformersRunner],
) -> dict[str, Any]:
    """Compare one variant with the machine's bound and with the peer."""
    mine = summarize_runs(runs[one.name])
    needed = step_cost(one.system.generator, job, steps=mine["steps"])
    rate = needed.roofline_steps_per_second(bounds)
    ratios = {peer.name: summarize_runs(runs[peer.name])["total_seconds"]["median"] for peer in peers}
    return {
        "bound": asdict(needed) | {"steps_per_second": rate},
        "share_of_bound": mine["steps_per_second"]["median"] / rate,
        "faster_than": {name: seconds / mine["total_seconds"]["median"] for name, seconds in ratios.items()},
    }


def _chosen(
    ours: Sequence[CadenzaRunner], peers: Sequence[TransformersRunner], runs: dict[str, list[TimedRun]]
) -> list[Runner]:
    """Of both sides the quickest."""
    quickest = lambda side: min(side, key=lambda one: summarize_runs(runs[one.name])["total_seconds"]["median"])  # noqa: E731
    return [quickest(side) for side in (ours, peers) if side]


def _fresh(
    place: _Place, ours: Sequence[CadenzaRunner], peers: Sequence[TransformersRunner]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every contestant in a process of its own; ours once chunk by chunk and once all at once."""
    common: dict[str, Any] = {"seconds": place.wish.seconds, "device": place.wish.device}
    for one in ours:
        for streamed in (True, False):
            found = run_in_subprocess(
                SubprocessJob(str(one.model), threads=one.threads, variant=one.variant, streamed=streamed, **common)
            )
            name = f"{one.name}, {'streamed' if streamed else 'whole'}"
            place.say(f"{name}, in a process of its own: {found['memory']['peak'] / 1e9:.2f} GB at most")
            yield name, found
    for peer in peers:
        found = run_in_subprocess(SubprocessJob(str(peer.folder), threads=peer.threads, peer=asdict(peer.config), **common))
        place.say(f"{peer.name}, in a process of its own: {found['memory']['peak'] / 1e9:.2f} GB at most")
        yield peer.name, found


def _codec(place: _Place, shape: ModelGeometry, report: dict[str, Any], before: MachineLimits) -> None:
    """A codec alone."""
    wish, where = place.wish, {"device": place.device, "threads": place.threads}
    fits_in_memory(shape, (), (), place.device)
    folder, job = place.folder / "model", BenchJob(wish.seconds)
    write(shape, folder)
    ours, peer = sound.CadenzaCodecRunner(folder, **where), sound.TransformersCodecRunner(folder, **where)
    sides: list[Runner] = [ours, peer] if wish.peers else [ours]
    report |= {"parameters": shape.parameters, "job": asdict(job)}
    if wish.peers:
        report["equal"] = sound.check_equal_codec(ours, peer, BenchJob(min(CHECKED, wish.seconds)))
    runs = run_interleaved(sides, job, {one.name: wish.repeats for one in sides}, keep=True, say=place.say)
    bounds = before.max_with(measure_limits(place.device, quick=wish.quick))
    report |= {"bounds": asdict(bounds) | {"bandwidth": bounds.bandwidth}}
    report["results"] = {name: summarize_runs(each) for name, each in runs.items()}
    if wish.peers:
        mine, theirs = (report["results"][one.name]["total_seconds"]["median"] for one in (ours, peer))
        report["results"][ours.name]["faster_than"] = {peer.name: theirs / mine}
