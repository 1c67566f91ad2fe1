"""Targets of Cadenza, next to the measured figures."""

from collections.abc import Iterator
from typing import Any

GIGA = 1e9


def check_targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target of the model on this kind of device: what, what is wanted, what was measured, whether it is reached."""
    if report["quick"] or report.get("job", {}).get("seconds") != 30.0:
        return []
    found = _cpu(report) if report["device"] == "cpu" else _gpu(report)
    return [
        {"what": what, "wanted": wanted, "measured": value, "reached": None if value is None else _met(value, wanted)}
        for what, wanted, value in found
    ]


Target = tuple[str, tuple[str, float], float | None]  # what, at least or at most how much, how much it is


def _cpu(report: dict[str, Any]) -> Iterator[Target]:
    if report["model"] == "starter":
        best = [one["times_real_time"]["median"] for one in report["results"].values()]
        yield "times real time, end to end", (">=", 6.0), max(best, default=None)
    if report["model"] != "musicgen-small":
        return
    int8, int4 = (report["results"].get(f"cadenza {kind}") for kind in ("int8", "int4"))
    yield "int8: times real time, end to end", (">=", 1.0), _of(int8, "times_real_time")
    yield "int8: steps a second", (">=", 53.0), _of(int8, "steps_per_second")
    yield "int4: steps a second", (">=", 70.0), _of(int4, "steps_per_second")
    for kind, one in (("int8", int8), ("int4", int4)):
        yield f"{kind}: share of the measured bound", (">=", 0.5), one and one["share_of_bound"]
    slow = [name for name in report["results"] if name.startswith("transformers float32")]
    ratios = [ratio for name in slow if int8 and (ratio := int8["faster_than"].get(name))]
    yield "int8: times as fast as transformers in float32, end to end", (">=", 8.0), min(ratios, default=None)
    yield "int8: seconds from the call to the first sound", ("<=", 1.5), int8 and int8.get("first_sound", {}).get("median")
    for how in ("streamed", "whole"):
        peak = report.get("fresh", {}).get(f"cadenza int8, {how}", {}).get("memory", {}).get("peak")
        yield f"int8: peak resident memory, {how}, GB", ("<=", 1.2), peak and peak / GIGA


def _gpu(report: dict[str, Any]) -> Iterator[Target]:
    ours = {name: one for name, one in report["results"].items() if name.startswith("cadenza")}
    if report["model"] == "musicgen-small":
        yield "times real time, end to end", (">=", 25.0), max(_of(one, "times_real_time") or 0 for one in ours.values())
    if report["model"] in ("musicgen-medium", "musicgen-large"):
        yield "share of the measured bound, one clip", (">=", 0.5), max(one["share_of_bound"] for one in ours.values())
    plain = [name for name in report["results"] if name.startswith("transformers") and "compiled" not in name]
    ratios = [one["faster_than"][name] for one in ours.values() for name in plain]
    yield "times as fast as transformers without compilation", (">=", 10.0), max(ratios, default=None)


def _of(one: dict[str, Any] | None, name: str) -> float | None:
    return None if one is None else one[name]["median"]


def _met(value: float, wanted: tuple[str, float]) -> bool:
    way, limit = wanted
    return value >= limit if way == ">=" else value <= limit
