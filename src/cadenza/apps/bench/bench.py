"""Bench: one run that builds, checks, times and compares."""

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cadenza.apps.bench import machine, sound
from cadenza.apps.bench.bound import need
from cadenza.apps.bench.curves import axis, curve
from cadenza.apps.bench.equality import equal
from cadenza.apps.bench.fresh import Order, fresh
from cadenza.apps.bench.geometry import Geometry, geometry, names, write
from cadenza.apps.bench.machine import Bounds
from cadenza.apps.bench.measure import Contestant, Job, Run, Say, alternate, computing, spread, summary
from cadenza.apps.bench.ours import Ours, known, stored
from cadenza.apps.bench.peer import Peer, PeerConfig
from cadenza.apps.bench.room import keeps
from cadenza.apps.bench.sweep import cells, sweep
from cadenza.apps.bench.targets import targets
from cadenza.core.errors import BenchmarkError

CHECKED = 2.0  # seconds of audio that are shown to be equal
ONE_THREAD = 50_000_000  # parameters below which the second thread costs more than it gives


@dataclass(frozen=True)
class Wish:
    """What a run shall measure."""

    model: str
    seconds: float = 30.0
    variants: tuple[str, ...] = ("float32", "int8", "int4")
    peers: tuple[PeerConfig, ...] = (PeerConfig(),)
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

    wish: Wish
    folder: Path
    device: torch.device
    threads: int
    say: Say


def bench(wish: Wish, *, say: Say = print) -> dict[str, Any]:
    """The report of a run, as the JSON has it."""
    for name in wish.curves:
        axis(name)  # says what there is not before the long part
    for variant in wish.variants:
        known(variant)
    with _placed(wish, say) as place:
        report = _opening(place)
        before = machine.measured(place.device, quick=wish.quick)
        if wish.model not in names():
            _music(place, None, report, before)
        elif (shape := geometry(wish.model, quick=wish.quick)).decoder is None:
            _codec(place, shape, report, before)
        else:
            _music(place, shape, report, before)
    return report | {"targets": targets(report)}


def swept(wish: Wish, *, say: Say = print) -> dict[str, Any]:
    """The report of a sweep over the configurations of the peer."""
    with _placed(wish, say) as place:
        report = _opening(place)
        shape = geometry(wish.model, quick=wish.quick)
        if shape.decoder is None:
            raise BenchmarkError("a sweep is of a language model; a codec has one configuration")
        keeps(shape, (), (PeerConfig(),), place.device)
        write(shape, place.folder / "model")
        jobs = (Job(wish.seconds / 4), Job(wish.seconds))
        configs = cells(place.device, compiled=not wish.quick)
        found = sweep(place.folder / "model", configs, device=place.device, threads=place.threads, jobs=jobs, say=say)
    return report | {"sweep": found}


@contextmanager
def _placed(wish: Wish, say: Say) -> Iterator[_Place]:
    device = torch.device(wish.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("torch sees no GPU here; use --device cpu")
    threads = wish.threads or machine.cores()
    with computing(threads), tempfile.TemporaryDirectory(prefix="cadenza-bench-") as folder:
        yield _Place(wish, Path(folder), device, threads, say)


def _opening(place: _Place) -> dict[str, Any]:
    return {
        "model": place.wish.model,
        "quick": place.wish.quick,
        "device": place.device.type,
        "date": machine.today(),
        "command": shlex.join(["cadenza", *sys.argv[1:]]),
        "machine": machine.described(place.device),
        "threads": place.threads,
    }


def _music(place: _Place, shape: Geometry | None, report: dict[str, Any], before: Bounds) -> None:
    """A language model and its codec: a geometry, or a model that is ours alone."""
    wish, say, where = place.wish, place.say, {"device": place.device, "threads": place.threads}
    source: str | Path = wish.model
    peer_configs = wish.peers if shape is not None else ()
    keep = True
    if shape is not None:
        keep = keeps(shape, wish.variants, peer_configs, place.device)
        say(f"drawing random weights of {wish.model}{', tiny' if wish.quick else ''}")
        source = place.folder / "model"
        write(shape, source)
        report["parameters"] = shape.parameters
    job = Job(wish.seconds)
    report["job"] = asdict(job)
    if peer_configs:
        sides = Ours(source, "float32", **where), Peer(Path(source), PeerConfig(), **where)
        report["equal"] = equal(*sides, min(CHECKED, wish.seconds))
        say(f"greedy float32 audio is the same, to {report['equal']['max_abs_difference']:.2g}")
    ours = [Ours(stored(source, variant, place.folder), variant, **where) for variant in wish.variants]
    if shape is None and not wish.threads and _small(ours):
        for one in ours:
            one.threads = 1
    peers = [Peer(Path(source), config, **where) for config in peer_configs]
    contestants: list[Contestant] = [*ours, *peers]
    repeats = {one.name: wish.repeats for one in ours} | {one.name: wish.peer_repeats for one in peers}
    runs = alternate(contestants, job, repeats, keep=keep, say=say)
    bounds = before.better(machine.measured(place.device, quick=wish.quick))
    report |= {"bounds": asdict(bounds) | {"bandwidth": bounds.bandwidth}}
    report["results"] = {name: summary(each) for name, each in runs.items()}
    for one in ours:
        report["results"][one.name] |= _beside(one, job, runs, bounds, peers) | {"threads": one.threads}
        report["results"][one.name]["first_sound"] = spread([one.first(job) for _ in range(wish.repeats)])
        if not keep:
            one.close()
    if wish.curves:
        measured = _chosen(ours, peers, runs)
        report["curves"] = {name: curve(axis(name, quick=wish.quick), measured, say=say) for name in wish.curves}
    for one in contestants:
        one.close()
    if wish.fresh:
        report["fresh"] = dict(_fresh(place, ours, peers))


def _small(ours: Sequence[Ours]) -> bool:
    return bool(ours) and sum(x.numel() for x in ours[0].system.parameters()) < ONE_THREAD


def _beside(one: Ours, job: Job, runs: dict[str, list[Run]], bounds: Bounds, peers: Sequence[Peer]) -> dict[str, Any]:
    """One of ours beside the machine's bound and beside the peer."""
    mine = summary(runs[one.name])
    needed = need(one.system.generator, job, steps=mine["steps"])
    rate = needed.rate(bounds)
    ratios = {peer.name: summary(runs[peer.name])["total_seconds"]["median"] for peer in peers}
    return {
        "bound": asdict(needed) | {"steps_per_second": rate},
        "share_of_bound": mine["steps_per_second"]["median"] / rate,
        "faster_than": {name: seconds / mine["total_seconds"]["median"] for name, seconds in ratios.items()},
    }


def _chosen(ours: Sequence[Ours], peers: Sequence[Peer], runs: dict[str, list[Run]]) -> list[Contestant]:
    """Of both sides the quickest."""
    quickest = lambda side: min(side, key=lambda one: summary(runs[one.name])["total_seconds"]["median"])  # noqa: E731
    return [quickest(side) for side in (ours, peers) if side]


def _fresh(place: _Place, ours: Sequence[Ours], peers: Sequence[Peer]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every contestant in a process of its own; ours once chunk by chunk and once all at once."""
    common: dict[str, Any] = {"seconds": place.wish.seconds, "device": place.wish.device}
    for one in ours:
        for streamed in (True, False):
            found = fresh(Order(str(one.model), threads=one.threads, variant=one.variant, streamed=streamed, **common))
            name = f"{one.name}, {'streamed' if streamed else 'whole'}"
            place.say(f"{name}, in a process of its own: {found['memory']['peak'] / 1e9:.2f} GB at most")
            yield name, found
    for peer in peers:
        found = fresh(Order(str(peer.folder), threads=peer.threads, peer=asdict(peer.config), **common))
        place.say(f"{peer.name}, in a process of its own: {found['memory']['peak'] / 1e9:.2f} GB at most")
        yield peer.name, found


def _codec(place: _Place, shape: Geometry, report: dict[str, Any], before: Bounds) -> None:
    """A codec alone."""
    wish, where = place.wish, {"device": place.device, "threads": place.threads}
    keeps(shape, (), (), place.device)
    folder, job = place.folder / "model", Job(wish.seconds)
    write(shape, folder)
    ours, peer = sound.OurCodec(folder, **where), sound.PeerCodec(folder, **where)
    sides: list[Contestant] = [ours, peer] if wish.peers else [ours]
    report |= {"parameters": shape.parameters, "job": asdict(job)}
    if wish.peers:
        report["equal"] = sound.same(ours, peer, Job(min(CHECKED, wish.seconds)))
    runs = alternate(sides, job, {one.name: wish.repeats for one in sides}, keep=True, say=place.say)
    bounds = before.better(machine.measured(place.device, quick=wish.quick))
    report |= {"bounds": asdict(bounds) | {"bandwidth": bounds.bandwidth}}
    report["results"] = {name: summary(each) for name, each in runs.items()}
    if wish.peers:
        mine, theirs = (report["results"][one.name]["total_seconds"]["median"] for one in (ours, peer))
        report["results"][ours.name]["faster_than"] = {peer.name: theirs / mine}
