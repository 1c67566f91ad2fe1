"""Report: what a run measured, as JSON, as Markdown and as pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cadenza.core.errors import BenchmarkError
from compare.curves import plot_curve
from compare.sweep import sweep_table

_PARTS = ("language model", "text encoder", "codec", "libraries")


def save_report(report: dict[str, Any], folder: Path) -> Path:
    """Writes the files of a report, named by its model, and gives the Markdown's path."""
    stem = report["model"].replace("/", "-") + ("-sweep" if "sweep" in report else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
        for name, curve in report.get("curves", {}).items():
            plot_curve(curve, f"{report['model']}: {name}", folder / f"{stem}-{name}.png")
        path = folder / f"{stem}.md"
        path.write_text("\n".join(to_markdown(report, stem)) + "\n")
    except OSError as error:
        raise BenchmarkError(f"{folder}: the report cannot be written ({error.strerror}); choose another --out") from None
    return path


def to_markdown(report: dict[str, Any], stem: str) -> Iterator[str]:
    """The report's lines."""
    machine = report["machine"]
    gigabytes = machine["memory_bytes"] / 1e9
    where = f"{machine['gpu']}, " if "gpu" in machine else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"# {report['model']}, {report['date']}"
    yield ""
    if report["quick"]:
        yield "**A tiny model of the same kind, to try the benchmark itself: these numbers say nothing.**"
        yield ""
    yield f"{where}{machine['cpu']}, {machine['cores']} cores, {gigabytes:.1f} GB, {machine['system']}; {versions}."
    load = machine["load_at_start"]
    yield f"Python {machine['python']}, {report['threads']} threads; load of the machine when it began: {load}."
    if "parameters" in report:
        yield f"Random weights, {report['parameters'] / 1e6:.0f} M parameters with text encoder and codec."
    yield ""
    yield "```bash"
    yield report["command"]
    yield "```"
    for part in (_targets, _equal, _results, _bounds, _fresh, _curves, _sweep, _all):
        lines = list(part(report, stem))
        if lines:
            yield ""
            yield from lines


def _targets(report: dict[str, Any], stem: str) -> Iterator[str]:
    if not report.get("targets"):
        return
    yield "## Targets"
    yield ""
    yield "| | wanted | measured | |"
    yield "|---|---|---|---|"
    said = {True: "reached", False: "**missed**", None: "not measured"}
    for one in report["targets"]:
        way, limit = one["wanted"]
        value = "" if one["measured"] is None else f"{one['measured']:.2f}"
        yield f"| {one['what']} | {way} {limit:g} | {value} | {said[one['reached']]} |"


def _equal(report: dict[str, Any], stem: str) -> Iterator[str]:
    if "equal" not in report:
        return
    equal = report["equal"]
    codes = "All codes are the same" if equal["codes_equal"] else "All but a few codes are the same"
    yield "## The same sound"
    yield ""
    yield f"Ours and transformers, float32, greedy, {equal['seconds']:g} s."
    yield f"{codes}, of which {equal['distinct_codes']} kinds occur;"
    yield f"samples differ by {equal['max_abs_difference']:.2g} at most, where the loudest is {equal['peak']:.2g}."
    if equal.get("prompts_tried", 1) > 1:
        yield f"At {equal['prompts_tried'] - 1} other prompts they were not: rounding decides between codes that are near."


def _results(report: dict[str, Any], stem: str) -> Iterator[str]:
    if not report.get("results"):
        return
    job, results = report["job"], report["results"]
    yield f"## One clip of {job['seconds']:g} s" if job["batch"] == 1 else f"## {job['batch']} clips of {job['seconds']:g} s"
    yield ""
    yield "In turn, in one process, the median of the runs (least to greatest)."
    if any(name.startswith("transformers") for name in results):
        yield "A clip of transformers sounds once it is whole."
    yield ""
    music = any("steps" in one for one in results.values())
    parts = list(next(iter(results.values()))["seconds"])
    head = ["", "runs", *(["steps/s", "of the bound"] if music else []), "x real time", *(f"{name}, s" for name in parts)]
    head += ["first sound, s"] if music else []
    peers = [name for name in results if name.startswith("transformers")]
    head += [f"x {name}" for name in peers]
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for name, one in results.items():
        cells = [name, str(len(one["total_seconds"]["all"]))]
        if music:
            share = one.get("share_of_bound")
            cells += [_spread(one["steps_per_second"]), "" if share is None else f"{100 * share:.0f} %"]
        cells += [_spread(one["times_real_time"], 3), *(f"{one['seconds'][part]['median']:.2f}" for part in parts)]
        if music:
            cells.append(_spread(one.get("first_sound", one["total_seconds"])))
        faster = one.get("faster_than", {})
        cells += [f"{faster[peer]:.2f}" if peer in faster else "" for peer in peers]
        yield f"| {' | '.join(cells)} |"


def _bounds(report: dict[str, Any], stem: str) -> Iterator[str]:
    if "bounds" not in report:
        return
    bounds = report["bounds"]
    yield "## The machine's bound"
    yield ""
    yield f"Measured in the same run, before and after: memory read {bounds['read'] / 1e9:.1f} GB/s, copied (both ways counted)"
    yield f"{bounds['copy'] / 1e9:.1f} GB/s; matrix product in float32 {bounds['float32'] / 1e9:.0f} GFLOP/s, in bfloat16"
    yield f"{bounds['bfloat16'] / 1e9:.0f} GFLOP/s."
    rows = [(name, one["bound"]) for name, one in report["results"].items() if "bound" in one]
    if not rows:
        return
    yield "The bound of a step is what it must read (weights as they are stored, keys and values of half of the clip, the mean"
    yield "of what lies behind it) over the better of read and copy, or its operations over the better matrix product where"
    yield "that takes longer."
    yield ""
    yield "| | weights, MB | keys and values, MB | GFLOP | bound, steps/s |"
    yield "|---|---|---|---|---|"
    for name, one in rows:
        cells = (one["weights"] / 1e6, one["memory"] / 1e6, one["operations"] / 1e9, one["steps_per_second"])
        yield f"| {name} | {cells[0]:.0f} | {cells[1]:.0f} | {cells[2]:.2f} | {cells[3]:.1f} |"


def _fresh(report: dict[str, Any], stem: str) -> Iterator[str]:
    if not report.get("fresh"):
        return
    yield "## In a process of its own"
    yield ""
    yield "Seconds since the process was started, and resident memory: its peak, and what is known of it. The rest are keys and"
    yield "values, what is computed with, and copies of weights in other layouts."
    yield ""
    yield "| | imported, s | loaded, s | first sound, s | end, s | **peak, MB** | " + ", MB | ".join(_PARTS) + ", MB |"
    yield "|" + "---|" * (6 + len(_PARTS))
    for name, one in report["fresh"].items():
        seconds, memory = one["seconds"], one["memory"]
        first = seconds.get("first sound", seconds["end"])
        moments = [seconds["imported"], seconds["loaded"], first, seconds["end"]]
        cells = [f"{x:.1f}" for x in moments] + [f"**{memory['peak'] / 1e6:.0f}**"]
        cells += [f"{memory[part] / 1e6:.0f}" if part in memory else "" for part in _PARTS]
        yield f"| {name} | {' | '.join(cells)} |"


def _curves(report: dict[str, Any], stem: str) -> Iterator[str]:
    for number, (name, curve) in enumerate(report.get("curves", {}).items()):
        job = curve["job"]
        if number:
            yield ""
        yield f"## Cost against {curve['axis']}"
        yield ""
        rest = f"{job['seconds']:g} s, batch {job['batch']}, {job['branches']} branches, {job['words']} tokens of a prompt"
        yield f"One run a point, the rest as in: {rest}."
        yield ""
        yield f"![{name}]({stem}-{name}.png)"
        yield ""
        names = [one for one, points in curve["points"].items() if points]
        yield f"| {curve['axis']} | " + " | ".join(f"{one}: x real time | steps/s | s" for one in names) + " |"
        yield "|" + "---|" * (1 + 3 * len(names))
        for at in sorted({point["at"] for points in curve["points"].values() for point in points}):
            cells = []
            for one in names:
                point = next((point for point in curve["points"][one] if point["at"] == at), None)
                cells += ["", "", ""] if point is None else [
                    f"{point['times_real_time']:.3f}", f"{point['steps_per_second']:.1f}", f"{point['total']:.2f}"
                ]  # fmt: skip
            yield f"| {at:g} | {' | '.join(cells)} |"
        yield from (f"\nNot measured: {line}." for line in curve["left_out"])


def _sweep(report: dict[str, Any], stem: str) -> Iterator[str]:
    if "sweep" not in report:
        return
    yield "## Configurations of transformers"
    yield ""
    yield from sweep_table(report["sweep"])


def _all(report: dict[str, Any], stem: str) -> Iterator[str]:
    if not report.get("results"):
        return
    yield "## Every run"
    yield ""
    for name, one in report["results"].items():
        yield f"- {name}: {', '.join(f'{seconds:.2f}' for seconds in one['total_seconds']['all'])} s"


def _spread(found: dict[str, Any], places: int = 2) -> str:
    middle, low, high = (f"{found[key]:.{places}f}" for key in ("median", "min", "max"))
    return middle if len(found["all"]) == 1 else f"{middle} ({low} to {high})"
