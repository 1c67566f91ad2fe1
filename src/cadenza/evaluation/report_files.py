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
from cadenza.evaluation.adherence import CONTROL_OF, AttributeResult, Interval
from cadenza.evaluation.settings import ALL_BUT, ControlSetting, display_name

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
    "unread": "the caption, without extracted values",
    "hand": "sixty hand-written prompts",
    "all": "all controls",
    "nothing": "no control",
    "reference": "the references",
}


def plot_adherence(report: Any, path: Path) -> None:
    """Plot a bar with bounds for the adherence of each attribute in each setting."""
    rows = [
        (f"{attribute}, {setting}", result.adherence.value)
        for setting, attributes in report.scores.items()
        for attribute, result in attributes.items()
        if not math.isnan(result.adherence.value.value)
    ]
    figure = new_figure((7, 0.6 + 0.32 * max(1, len(rows))))
    axes = figure.add_subplot()
    for y, (_, interval) in enumerate(rows):
        axes.barh(y, interval.value, color="#4c72b0", height=0.6)
        axes.plot([interval.low, interval.high], [y, y], color="#222222", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(xlim=(min([0.0, *(a.low for _, a in rows)]) - 0.05, 1.1), xlabel="adherence: 0 chance, 1 reference renders")
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


def plot_bars(values: dict[str, float], title: str, path: Path) -> None:
    """Plot one horizontal bar per name."""
    figure = new_figure((7, 0.8 + 0.3 * max(1, len(values))))
    axes = figure.add_subplot()
    axes.barh(list(values), list(values.values()), color="#4c72b0")
    axes.invert_yaxis()
    axes.set(title=title)
    save_figure(figure, path)


def save_report(
    report: Any,
    out: Path,
    *,
    generated: Mapping[str, Sequence[Audio]],
    references: Sequence[Audio],
    settings: Sequence[ControlSetting],
) -> None:
    """Write `report.json`, `report.md`, `adherence.png` and `clips.png` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "report.json")
    write_text(markdown(report), out / "report.md")
    plot_adherence(report, out / "adherence.png")
    setting = next((setting for setting in settings if setting.given and setting.references), settings[0])
    titles = [str(item.get("prompt") or item) for item in setting.items[:NUM_PLOTTED]]
    clips = list(generated[setting.name][:NUM_PLOTTED])
    plot_spectrogram_pairs(clips, list(references[:NUM_PLOTTED]), titles, out / "clips.png")


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
    lines = [
        f"# Scores of {report.system}",
        "",
        f"{report.clips} held-out clips, seeds {seeds}, guidance {report.guidance:g}; "
        f"estimators {report.estimators[:12]}. A = (score - chance) / (ceiling - chance), with 95 % bootstrap bounds; "
        "own effect = score minus the score of the same clips and seeds without the control.",
    ]
    rows = []
    for setting, attributes in report.scores.items():
        for name, result in attributes.items():
            a, effect = result.adherence, "" if result.effect is None else format_interval(result.effect)
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
        lines += [
            "",
            f"Copies: {c.rate:.1%} of the clips are nearer to one of {c.training_clips} training clips than all but 1 % of "
            f"the unseen references (distance below {c.threshold:.3f}; 1 % is expected of music that copies nothing).",
        ]
    return "\n".join(lines) + "\n"


def format_table(header: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return an empty line and the lines of a Markdown table; `header` separates its names by ' | '."""
    names = header.split(" | ")
    return ["", f"| {header} |", "|" + "---|" * len(names), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def setting_label(setting: str) -> str:
    """Return the description of a setting in a report."""
    if setting.startswith(ALL_BUT):
        return f"all controls but {setting.removeprefix(ALL_BUT)}"
    return SETTING_LABELS.get(setting, f"{setting} alone")


def _control_table(report: Any) -> list[str]:
    """Adherence of each attribute to its control, alone and with all others, with own effects in the unit of A."""
    rows = []
    for attribute, control in CONTROL_OF.items():
        results = [report.scores.get(setting, {}).get(attribute) for setting in (display_name(control), "all")]
        if any(results):
            cells = [cell for result in results for cell in _adherence_cells(result)]
            rows.append([attribute, display_name(control), *cells, PUBLISHED_RESULTS.get(attribute, "")])
    if not rows:
        return []
    header = "attribute | control | A alone | own effect alone | A together | own effect together | published"
    return [
        "",
        "Each control alone and with all others; own effects divided by ceiling - chance, to be compared with A. Published "
        "values are of other data, outputs and estimators.",
        *format_table(header, rows),
    ]


def _adherence_cells(result: AttributeResult | None) -> tuple[str, str]:
    """Adherence, and the own effect as a part of it."""
    if result is None:
        return "", ""
    span, effect = result.ceiling_minus_chance, result.effect
    return format_interval(result.adherence.value), "" if effect is None or not span else format_score(effect.value / span)


def _effect_table(report: Any) -> list[str]:
    """Changes of the attributes of all other controls by each control."""
    attributes = [name for name in CONTROL_OF if any(name in row for row in report.changes.values())]
    if not attributes:
        return []
    rows = [
        [display_name(control), *(format_interval(row[name]) if name in row else "" for name in attributes)]
        for control, row in report.changes.items()
    ]
    text = "Change of A in the attributes of all other controls when a control is added (below 0: they follow less well)."
    return ["", text, *format_table(" | ".join(["added", *attributes]), rows)]


def format_score(value: float) -> str:
    """Return two decimals, or a dash if the value is not finite."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def format_interval(interval: Interval) -> str:
    """Return a value with its bounds in parentheses, or a dash."""
    value, low, high = (format_score(x) for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})" if math.isfinite(interval.value) else "–"
