"""Plots of reports: adherence with its bounds, what was made beside what it was asked after."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cadenza.core.atomic import atomic_write
from cadenza.dsp.audio import Audio
from cadenza.dsp.plots import new_figure, plot_spectrogram, save_figure
from cadenza.evaluation.adherence import SHOWN_BY, Interval
from cadenza.evaluation.settings import BUT, ControlSetting, display_name


def plot_adherence(report: Any, path: Path) -> None:
    """A bar for each attribute in each setting, with the bounds of its adherence."""
    rows = [
        (f"{attribute}, {setting}", one.adherence.value)
        for setting, attributes in report.scores.items()
        for attribute, one in attributes.items()
        if not math.isnan(one.adherence.value.value)
    ]
    drawn = new_figure((7, 0.6 + 0.32 * max(1, len(rows))))
    axes = drawn.add_subplot()
    for place, (_, a) in enumerate(rows):
        axes.barh(place, a.value, color="#4c72b0", height=0.6)
        axes.plot([a.low, a.high], [place, place], color="#222222", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(xlim=(min([0.0, *(a.low for _, a in rows)]) - 0.05, 1.1), xlabel="adherence: 0 chance, 1 reference renders")
    save_figure(drawn, path)


def plot_spectrogram_pairs(made: Sequence[Audio], references: Sequence[Audio], titles: Sequence[str], path: Path) -> None:
    """Mel spectrograms of generated clips on the left, of the references through the codec on the right."""
    drawn = new_figure((12, 2.2 * max(1, len(made))))
    frame_format = drawn.subplots(len(made), 2, squeeze=False)
    for row, pair, title in zip(frame_format, zip(made, references, strict=True), titles, strict=True):
        for axes, clip, side in zip(row, pair, ("generated", "reference through the codec"), strict=True):
            plot_spectrogram(axes, clip)
            axes.set_title(f"{side}: {title}"[:90], fontsize=7)
            axes.set(xlabel="", ylabel="", yticks=[])
    save_figure(drawn, path)


def plot_bars(values: dict[str, float], title: str, path: Path) -> None:
    """One bar a name."""
    drawn = new_figure((7, 0.8 + 0.3 * max(1, len(values))))
    axes = drawn.add_subplot()
    axes.barh(list(values), list(values.values()), color="#4c72b0")
    axes.invert_yaxis()
    axes.set(title=title)
    save_figure(drawn, path)


PUBLISHED_RESULTS: dict[str, str] = {
    "melody": "MuseControlLite .64 (melody accuracy)",
    "chroma": "MusicGen-melody .44 (cosine to the reference)",
    "chords": "MusiConGen .73 (majmin)",
    "chord IoU": "JASCO .69",
    "beat": "MusiConGen .79 (F1)",
    "onset": "JASCO .38 (F1, of drums)",
}


SHOWN = 4  # clips drawn beside their references
MEANT = {
    "text": "a held-out caption",
    "unread": "the caption, no value read in it",
    "hand": "sixty prompts written by hand",
    "all": "everything together",
    "nothing": "nothing asked",
    "reference": "the references",
}


def save_report(
    report: Any, out: Path, *, made: Mapping[str, Sequence[Audio]], through: Sequence[Audio], asked: Sequence[ControlSetting]
) -> None:
    """`report.json`, `report.md`, `adherence.png`, `clips.png` in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "report.json")
    write_text(markdown(report), out / "report.md")
    plot_adherence(report, out / "adherence.png")
    first = next((setting for setting in asked if setting.given and setting.references), asked[0])
    titles = [str(item.get("prompt") or item) for item in first.items[:SHOWN]]
    plot_spectrogram_pairs(list(made[first.name][:SHOWN]), list(through[:SHOWN]), titles, out / "clips.png")


def write_json(report: Any, path: Path) -> None:
    """A report as JSON; what is not a number is null."""
    write_text(json.dumps(json_safe(asdict(report)), indent=2) + "\n", path)


def write_text(content: str, path: Path) -> None:
    """A text file, complete or absent."""
    with atomic_write(path) as file:
        file.write(content.encode())


def json_safe(value: Any) -> Any:
    """Plain data in which numbers that are not finite are None, the others rounded to 1e-4."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def markdown(report: Any) -> str:
    """The report in tables."""
    seeds = ", ".join(map(str, report.seeds))
    lines = [
        f"# Scores of {report.system}",
        "",
        f"{report.clips} held-out clips, seeds {seeds}, guidance {report.guidance:g}; "
        f"estimators {report.estimators[:12]}. A = (score - chance) / (ceiling - chance), with 95 % bootstrap bounds; "
        "own effect = score minus the score of the same clips and seeds without the control.",
        "",
        "| asked with | attribute | clips | A | score | chance | ceiling | own effect |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting, attributes in report.scores.items():
        for name, one in attributes.items():
            a = one.adherence
            effect = "" if one.effect is None else format_interval(one.effect)
            row = [
                setting_label(setting),
                name,
                one.asked,
                format_interval(a.value),
                format_score(a.score.value),
                format_score(a.chance),
                format_score(a.ceiling),
                effect,
            ]
            lines.append(_row(row))
    lines += _controls(report) + _changes(report)
    lines += ["", "| clips | silent | with holes | clipping | loudness | length off by |", "|---|---|---|---|---|---|"]
    for name, s in report.soundness.items():
        level = f"{s.lufs:.1f} ± {s.lufs_spread:.1f} LUFS"
        off = f"{report.off[name]:.2f} s" if name in report.off else ""
        lines.append(_row([setting_label(name), f"{s.silent:.1%}", f"{s.holes:.1%}", f"{s.clipping:.1%}", level, off]))
    lines += ["", "Speed: " + ", ".join(f"{value:.1f}× real time {name}" for name, value in report.speed.items()) + "."]
    if report.copies is not None:
        c = report.copies
        lines += [
            "",
            f"Copies: {c.rate:.1%} of the clips come nearer to one of {c.training_clips} training clips than all but 1 % of "
            f"the unseen references do (distance below {c.threshold:.3f}; 1 % is expected of music that copies nothing).",
        ]
    return "\n".join(lines) + "\n"


def setting_label(setting: str) -> str:
    """What a setting is called in a report."""
    if setting.startswith(BUT):
        return f"everything but {setting.removeprefix(BUT)}"
    return MEANT.get(setting, f"{setting} alone")


def _controls(report: Any) -> list[str]:
    """Each attribute as it obeys its control alone and with all others, with own effects in the same unit."""
    lines = [
        "",
        "Each control alone and with all others; own effects divided by ceiling - chance, to be compared with A. Published "
        "values are of other data, outputs and estimators.",
        "",
        "| attribute | control | A alone | own effect alone | A together | own effect together | published |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = []
    for attribute, control in SHOWN_BY.items():
        alone = report.scores.get(display_name(control), {}).get(attribute)
        together = report.scores.get("all", {}).get(attribute)
        if alone or together:
            cells = [cell for one in (alone, together) for cell in _cells(one)]
            rows.append(_row([attribute, display_name(control), *cells, PUBLISHED_RESULTS.get(attribute, "")]))
    return lines + rows if rows else []


def _cells(one: Any) -> tuple[str, str]:
    """A and the own effect as a part of it."""
    if one is None:
        return "", ""
    effect = (
        "" if one.effect is None or not one.ceiling_minus_chance else format_score(one.effect.value / one.ceiling_minus_chance)
    )
    return format_interval(one.adherence.value), effect


def _changes(report: Any) -> list[str]:
    """What each control, given with all others, does to what these control."""
    attributes = [name for name in SHOWN_BY if any(name in row for row in report.changes.values())]
    if not attributes:
        return []
    lines = [
        "",
        "What adding a control to all others changes in A of what they control (below 0: it costs them).",
        "",
        _row(["added", *attributes]),
        _row(["---"] * (1 + len(attributes))),
    ]
    for control, row in report.changes.items():
        lines.append(_row([display_name(control), *(format_interval(row[name]) if name in row else "" for name in attributes)]))
    return lines


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def format_score(value: float) -> str:
    """Two digits, or a dash for what could not be measured."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def format_interval(interval: Interval) -> str:
    """A value with its bounds."""
    known = math.isfinite(interval.value)
    return f"{format_score(interval.value)} ({format_score(interval.low)} to {format_score(interval.high)})" if known else "–"
