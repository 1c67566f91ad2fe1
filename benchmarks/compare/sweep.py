"""Sweep: every configuration of the peer on a short clip, so that it runs in the best that it supports."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cadenza.apps.bench import BenchJob
from cadenza.core.errors import BenchmarkError
from compare.measure import Say
from compare.peer import TransformersConfig, TransformersRunner

FINALISTS = 3


def run_sweep(
    folder: Path,
    configs: Iterable[TransformersConfig],
    *,
    device: torch.device,
    threads: int,
    jobs: tuple[BenchJob, BenchJob],
    say: Say = print,
) -> dict[str, Any]:
    """Every configuration on the first job, then the best ones and the best in float32 on the second, longer one.

    Each cell says whether its greedy codes are those of the first one, float32 as transformers computes by default.
    """
    short, long = jobs
    wanted = TransformersRunner(folder, TransformersConfig(), device=device, threads=threads).generate(short, greedy=True)[1]
    rows = []
    for config in configs:
        row = _cell(TransformersRunner(folder, config, device=device, threads=threads), short, wanted)
        rows.append({"config": asdict(config), **row})
        say(f"{config.label}: {row.get('error') or format(row['steps_per_second'], '.2f') + ' steps/s'}")
    right = {_form(row) for row in rows if row["config"]["dtype"] == "float32" and row.get("same_codes") == 1.0}
    fit = sorted((row for row in rows if "error" not in row and _form(row) in right), key=lambda row: -row["steps_per_second"])
    exact = [row for row in fit if row["config"]["dtype"] == "float32"]
    finals = fit[:FINALISTS] + [row for row in exact[:1] if row not in fit[:FINALISTS]]
    for row in finals:
        config = TransformersConfig(**row["config"])
        row["final_steps_per_second"] = _timed(TransformersRunner(folder, config, device=device, threads=threads), long)
        say(f"{config.label}, {long.seconds:g} s: {row['final_steps_per_second']:.2f} steps/s")
    best = max(finals, key=lambda row: row["final_steps_per_second"], default=None)
    return {
        "jobs": [asdict(job) for job in jobs],
        "threads": threads,
        "cells": rows,
        "best": best and best["config"],
        "best_float32": exact[0]["config"] if exact else None,
    }


def sweep_configs(device: torch.device, *, compiled: bool = True) -> Iterator[TransformersConfig]:
    """All of dtype, attention and cache; with torch's own attention `compiled` too, where a compiler is."""
    dtypes = ("float32", "bfloat16") if device.type == "cpu" else ("float32", "bfloat16", "float16")
    for dtype, attention, cache in itertools.product(dtypes, ("sdpa", "eager"), ("dynamic", "static")):
        yield TransformersConfig(dtype, attention, cache)
    if compiled and find_cxx_compiler():
        for dtype, cache in itertools.product(dtypes, ("dynamic", "static")):
            yield TransformersConfig(dtype, "sdpa", cache, compiled=True)
    if device.type == "cpu":
        yield from (replace(TransformersConfig(dtype), threads=1) for dtype in dtypes)


def find_cxx_compiler() -> str | None:
    """The C++ compiler that torch.compile would call."""
    return next((name for name in ("g++", "clang++", "c++", "cl") if shutil.which(name)), None)


def best_configs(path: Path) -> tuple[TransformersConfig, ...]:
    """The best configuration of a sweep, and the best in float32, from its JSON."""
    try:
        found = json.loads(path.read_text())["sweep"]
        named = [TransformersConfig(**found[key]) for key in ("best_float32", "best") if found[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} is not the result of a sweep ({error}); make one with: python benchmarks/compare MODEL --sweep"
        ) from None
    return tuple(dict.fromkeys(named))


def sweep_table(sweep: dict[str, Any]) -> list[str]:
    """The cells as Markdown, the best first."""
    short, long = (job["seconds"] for job in sweep["jobs"])
    lines = [
        f"| configuration | steps/s, {short:g} s | steps/s, {long:g} s | greedy codes as in float32 |",
        "|---|---|---|---|",
    ]
    for row in sorted(sweep["cells"], key=lambda row: -row.get("steps_per_second", 0)):
        label = TransformersConfig(**row["config"]).label
        if "error" in row:
            lines.append(f"| {label} | does not run: {row['error']} | | |")
            continue
        final = f"{row['final_steps_per_second']:.2f}" if "final_steps_per_second" in row else ""
        lines.append(f"| {label} | {row['steps_per_second']:.2f} | {final} | {100 * row['same_codes']:.1f} % |")
    return lines


def _form(row: dict[str, Any]) -> tuple[Any, ...]:
    """All of a configuration but its dtype: only one whose float32 computes the right codes is compared with."""
    return tuple(value for name, value in row["config"].items() if name != "dtype")


def _cell(peer: TransformersRunner, job: BenchJob, wanted: torch.Tensor) -> dict[str, Any]:
    """How fast a configuration is, and the share of its codes that are as wanted; or why it does not run."""
    try:
        codes = peer.generate(job, greedy=True)[1]  # warms it, too
        rate = peer.timed(job).steps_per_second
    except Exception as error:  # whatever a configuration of another library fails with is what the sweep is to find out
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {"error": f"{type(error).__name__}: {first}"[:160]}
    finally:
        peer.close()
    return {"steps_per_second": rate, "same_codes": float((codes == wanted).float().mean())}


def _timed(peer: TransformersRunner, job: BenchJob) -> float:
    """Return the steps per second of a model after a warm-up run, and free the model."""
    peer.timed(peer.warmup_job(job))
    rate = peer.timed(job).steps_per_second
    peer.close()
    return rate
