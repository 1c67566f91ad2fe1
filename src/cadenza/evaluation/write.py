"""Reports as files: JSON for machines, Markdown for people, plots."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cadenza.core.files import replacing
from cadenza.dsp.audio import Audio
from cadenza.evaluation.adherence import Interval
from cadenza.evaluation.charts import draw_pairs, draw_scores
from cadenza.evaluation.published import PUBLISHED
from cadenza.evaluation.scores import SHOWN_BY
from cadenza.evaluation.settings import BUT, Setting, said

SHOWN = 4  # clips drawn beside their references
MEANT = {
    "text": "a held-out caption",
    "unread": "the caption, no value read in it",
    "hand": "sixty prompts written by hand",
    "all": "everything together",
    "nothing": "nothing asked",
    "reference": "the references",
}


def write(
    report: Any, out: Path, *, made: Mapping[str, Sequence[Audio]], through: Sequence[Audio], asked: Sequence[Setting]
) -> None:
    """`report.json`, `report.md`, `adherence.png`, `clips.png` in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "report.json")
    text(markdown(report), out / "report.md")
    draw_scores(report, out / "adherence.png")
    first = next((setting for setting in asked if setting.given and setting.references), asked[0])
    titles = [str(item.get("prompt") or item) for item in first.items[:SHOWN]]
    draw_pairs(list(made[first.name][:SHOWN]), list(through[:SHOWN]), titles, out / "clips.png")


def write_json(report: Any, path: Path) -> None:
    """A report as JSON; what is not a number is null."""
    text(json.dumps(finite(asdict(report)), indent=2) + "\n", path)


def text(content: str, path: Path) -> None:
    """A text file, complete or absent."""
    with replacing(path) as file:
        file.write(content.encode())


def finite(value: Any) -> Any:
    """Plain data in which numbers that are not finite are None, the others rounded to 1e-4."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
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
            effect = "" if one.effect is None else bounded(one.effect)
            row = [
                meant(setting),
                name,
                one.asked,
                bounded(a.a),
                number(a.score.value),
                number(a.chance),
                number(a.ceiling),
                effect,
            ]
            lines.append(_row(row))
    lines += _controls(report) + _changes(report)
    lines += ["", "| clips | silent | with holes | clipping | loudness | length off by |", "|---|---|---|---|---|---|"]
    for name, s in report.soundness.items():
        level = f"{s.lufs:.1f} ± {s.lufs_spread:.1f} LUFS"
        off = f"{report.off[name]:.2f} s" if name in report.off else ""
        lines.append(_row([meant(name), f"{s.silent:.1%}", f"{s.holes:.1%}", f"{s.clipping:.1%}", level, off]))
    lines += ["", "Speed: " + ", ".join(f"{value:.1f}× real time {name}" for name, value in report.speed.items()) + "."]
    if report.copies is not None:
        c = report.copies
        lines += [
            "",
            f"Copies: {c.rate:.1%} of the clips come nearer to one of {c.training_clips} training clips than all but 1 % of "
            f"the unseen references do (distance below {c.threshold:.3f}; 1 % is expected of music that copies nothing).",
        ]
    return "\n".join(lines) + "\n"


def meant(setting: str) -> str:
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
        alone = report.scores.get(said(control), {}).get(attribute)
        together = report.scores.get("all", {}).get(attribute)
        if alone or together:
            cells = [cell for one in (alone, together) for cell in _cells(one)]
            rows.append(_row([attribute, said(control), *cells, PUBLISHED.get(attribute, "")]))
    return lines + rows if rows else []


def _cells(one: Any) -> tuple[str, str]:
    """A and the own effect as a part of it."""
    if one is None:
        return "", ""
    effect = "" if one.effect is None or not one.room else number(one.effect.value / one.room)
    return bounded(one.adherence.a), effect


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
        lines.append(_row([said(control), *(bounded(row[name]) if name in row else "" for name in attributes)]))
    return lines


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def number(value: float) -> str:
    """Two digits, or a dash for what could not be measured."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def bounded(interval: Interval) -> str:
    """A value with its bounds."""
    known = math.isfinite(interval.value)
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})" if known else "–"
