"""Bench: one run that builds, checks, times and reports."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cadenza.apps.bench import machine
from cadenza.apps.bench.bound import need
from cadenza.apps.bench.equality import compared
from cadenza.apps.bench.geometry import Geometry, geometry, names, write
from cadenza.apps.bench.measure import Contestant, Job, Run, Say, alternate, spread, summary
from cadenza.apps.bench.ours import Ours
from cadenza.apps.bench.peer import Peer, PeerConfig


@dataclass(frozen=True)
class Wish:
    """What a run shall measure."""

    model: str
    seconds: float = 30.0
    variants: tuple[str, ...] = ("float32",)
    peers: tuple[PeerConfig, ...] = (PeerConfig(),)
    repeats: int = 3
    peer_repeats: int = 1
    threads: int = 0
    device: str = "cpu"
    quick: bool = False
    fresh: bool = True
    curves: tuple[str, ...] = ()


def bench(wish: Wish, *, say: Say = print) -> dict[str, Any]:
    """The report of a run, as the JSON has it."""
    device = torch.device(wish.device)
    threads = wish.threads or machine.cores()
    torch.set_num_threads(threads)
    report: dict[str, Any] = {
        "model": wish.model,
        "date": machine.today(),
        "command": shlex.join(["cadenza", *sys.argv[1:]]),
        "machine": machine.described(device),
        "threads": threads,
        "quick": wish.quick,
    }
    bounds = machine.measured(device, quick=wish.quick)
    with tempfile.TemporaryDirectory(prefix="cadenza-bench-") as place:
        folder = Path(place) / "model"
        shape = geometry(wish.model, quick=wish.quick)
        say(f"drawing random weights of {wish.model}{', tiny' if wish.quick else ''}")
        write(shape, folder)
        report |= {"parameters": shape.parameters}
        ours = [Ours(folder, variant, device=device, threads=threads) for variant in wish.variants]
        peers = [Peer(folder, config, device=device, threads=threads) for config in wish.peers]
        if peers:
            check = Job(min(2.0, wish.seconds))
            report["equal"] = compared(
                Ours(folder, "float32", device=device, threads=threads),
                Peer(folder, PeerConfig(), device=device, threads=threads),
                check,
            )
            say(f"equal: {report['equal']}")
        job = Job(wish.seconds)
        report["job"] = asdict(job)
        repeats = {one.name: wish.repeats for one in ours} | {one.name: wish.peer_repeats for one in peers}
        runs = alternate([*ours, *peers], job, repeats, keep=True, say=say)
        bounds = bounds.better(machine.measured(device, quick=wish.quick))
        report["bounds"] = asdict(bounds)
        report["results"] = {}
        for one in [*ours, *peers]:
            report["results"][one.name] = summary(runs[one.name])
    return report
