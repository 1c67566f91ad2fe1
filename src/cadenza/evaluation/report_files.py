"""Files of an evaluation: JSON, Markdown tables, plots of adherence, and spectrograms next to their references."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cadenza.core.atomic import atomic_write
from cadenza.dsp.audio import Audio
from cadenza.dsp.plots import new_figure, plot_spectrogram, save_figure
from cadenza.evaluation.adherence import CONTROL_OF, Interval
from cadenza.evaluation.settings import ALL_BUT, HANDWRITTEN, ControlSetting, display_name

NUM_PLOTTED = 4  # clips drawn next to their references
PUBLISHED_RESULTS: dict[str, str] = {
    "melody": "MuseControlLite .64 (melody accuracy)",
    "chroma": "MusicGen-melody .44 (cosine to the reference)",
    "chords": "MusiConGen .73 (majmin)",
    "chord IoU": "JASCO .69",
    "beat": "MusiConGen .79 (F1)",
    "onset": "JASCO .38 (F1, of drums)",
}
SETTING_LABELS = {
    "text": "a held-out caption",
    "text-without-values": "the caption, without extracted values",
    HANDWRITTEN: "sixty handwritten prompts",
    "all": "all controls",
    "nothing": "no control",
    "reference": "the references",
}


def plot_adherence(report: Any, path: Path) -> None:
    """Plot a bar with bounds for the adherence of each attribute in each setting."""
    results = {f"{name}, {setting}": result for setting, row in report.scores.items() for name, result in row.items()}
    intervals = {name: r.adherence.value for name, r in results.items() if not math.isnan(r.adherence.value.value)}
    low, label = min([0.0, *(i.low for i in intervals.values())]), "adherence: 0 chance, 1 reference renders"
    values = {name: interval.value for name, interval in intervals.items()}
    plot_bars(values, path, intervals=list(intervals.values()), xlim=(low - 0.05, 1.1), xlabel=label)


def plot_bars(values: Mapping[str, float], path: Path, *, intervals: Sequence[Interval] = (), **properties: Any) -> None:
    """Plot one horizontal bar per name, with lines for the intervals; `properties` are those of the axes."""
    figure = new_figure((7, 0.8 + 0.3 * max(1, len(values))))
    axes = figure.add_subplot()
    axes.barh(list(values), list(values.values()), color="#4c72b0", height=0.6)
    for y, interval in enumerate(intervals):
        axes.plot([interval.low, interval.high], [y, y], color="#222222", linewidth=1.5)
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(**properties)
    save_figure(figure, path)


def plot_spectrogram_pairs(generated: Sequence[Audio], references: Sequence[Audio], titles: Sequence[str], path: Path) -> None:
    """Plot mel spectrograms of generated clips (left) and of the references through the codec (right)."""
    figure = new_figure((12, 2.2 * max(1, len(generated))))
    grid = figure.subplots(len(generated), 2, squeeze=False)
    for row, pair, title in zip(grid, zip(generated, references, strict=True), titles, strict=True):
        for axes, clip, side in zip(row, pair, ("generated", "reference through the codec"), strict=True):
            plot_spectrogram(axes, clip)
            axes.set_title(f"{side}: {title}"[:90], fontsize=7)
            axes.set(xlabel="", ylabel="", yticks=[])
    save_figure(figure, path)


def save_report(
    report: Any, out: Path, clips: Mapping[str, list[Audio]], references: Sequence[Audio], settings: Sequence[ControlSetting]
) -> None:
    """Write `report.json`, `report.md`, `adherence.png` and `clips.png` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "report.json")
    write_text(markdown(report), out / "report.md")
    plot_adherence(report, out / "adherence.png")
    setting = next((setting for setting in settings if setting.controls and setting.references), settings[0])
    titles = [str(item.get("prompt") or item) for item in setting.items[:NUM_PLOTTED]]
    plot_spectrogram_pairs(clips[setting.name][:NUM_PLOTTED], references[:NUM_PLOTTED], titles, out / "clips.png")


def write_json(report: Any, path: Path) -> None:
    """Write a dataclass as JSON, with null for numbers that are not finite."""
    write_text(json.dumps(json_safe(asdict(report)), indent=2) + "\n", path)


def write_text(content: str, path: Path) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(content.encode())


def json_safe(value: Any) -> Any:
    """Return plain data with None for numbers that are not finite and all others rounded to 1e-4."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def markdown(report: Any) -> str:
    """Return the report as Markdown tables."""
    seeds = ", ".join(map(str, report.seeds))
    summary = (
        f"{report.clips} held-out clips, seeds {seeds}, guidance {report.guidance:g}; estimators {report.estimators[:12]}. "
        "A = (score - chance) / (ceiling - chance), with 95 % bootstrap bounds; "
        "own effect = score minus the score of the same clips and seeds without the control."
    )
    lines = [f"# Scores of {report.system}", "", summary]
    rows = []
    for setting, attributes in report.scores.items():
        for name, result in attributes.items():
            a, effect = result.adherence, format_interval(result.effect)
            scores = [format_score(score) for score in (a.score.value, a.chance, a.ceiling)]
            rows.append([setting_label(setting), name, result.asked, format_interval(a.value), *scores, effect])
    lines += format_table("requested with | attribute | clips | A | score | chance | ceiling | own effect", rows)
    lines += _control_table(report) + _effect_table(report)
    rows = []
    for name, health in report.soundness.items():
        rates = [f"{rate:.1%}" for rate in (health.silent, health.holes, health.clipping)]
        error = f"{report.off[name]:.2f} s" if name in report.off else ""
        rows.append([setting_label(name), *rates, f"{health.lufs:.1f} ± {health.lufs_spread:.1f} LUFS", error])
    lines += format_table("clips | silent | with holes | clipping | loudness | length error", rows)
    lines += ["", "Speed: " + ", ".join(f"{value:.1f}× real time {name}" for name, value in report.speed.items()) + "."]
    if report.copies is not None:
        c = report.copies
        nearer = f"Copies: {c.rate:.1%} of the clips are nearer to one of {c.training_clips} training clips than all but 1 % of"
        threshold = f"(distance below {c.threshold:.3f}; 1 % is expected of music that copies nothing)"
        lines += ["", f"{nearer} the unseen references {threshold}."]
    return "\n".join(lines) + "\n"


def format_table(header: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return an empty line and the lines of a Markdown table; `header` separates its names by ' | '."""
    names = header.split(" | ")
    return ["", f"| {header} |", "|" + "---|" * len(names), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def setting_label(setting: str) -> str:
    """Return the description of a setting in a report."""
    label = f"all controls but {setting.removeprefix(ALL_BUT)}" if setting.startswith(ALL_BUT) else f"{setting} alone"
    return SETTING_LABELS.get(setting, label)


def _control_table(report: Any) -> list[str]:
    """Adherence of each attribute to its control, alone and with all others, with own effects in the unit of A."""
    rows = []
    for attribute, control in CONTROL_OF.items():
        results = [report.scores.get(setting, {}).get(attribute) for setting in (display_name(control), "all")]
        if any(results):
            row = [attribute, display_name(control)]
            for result in results:
                span = result.ceiling_minus_chance if result else 0.0
                effect = format_score(result.effect.value / span) if span and result.effect else ""
                row += [format_interval(result.adherence.value) if result else "", effect]
            rows.append([*row, PUBLISHED_RESULTS.get(attribute, "")])
    header = "attribute | control | A alone | own effect alone | A together | own effect together | published"
    text = "Own effects are divided by ceiling - chance. Published values are of other data, outputs and estimators."
    return ["", text, *format_table(header, rows)] if rows else []


def _effect_table(report: Any) -> list[str]:
    """Changes of the attributes of all other controls by each control."""
    attributes = [name for name in CONTROL_OF if any(name in row for row in report.changes.values())]
    rows = []
    for control, row in report.changes.items():
        rows.append([display_name(control), *(format_interval(row.get(name)) for name in attributes)])
    text = "Change of A in the attributes of all other controls when a control is added (below 0: they follow less well)."
    return ["", text, *format_table(" | ".join(["added", *attributes]), rows)] if attributes else []


def format_score(value: float) -> str:
    """Return two decimals, or a dash if the value is not finite."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def format_interval(interval: Interval | None) -> str:
    """Return a value with its bounds in parentheses, a dash if it is not finite, or nothing without an interval."""
    if interval is None:
        return ""
    value, low, high = (format_score(x) for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})" if math.isfinite(interval.value) else "–"
