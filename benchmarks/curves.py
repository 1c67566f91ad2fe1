"""Draws the curves of a training run: python benchmarks/curves.py LOG.jsonl OUT.png generator/loss loss unconditioned"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def curves(log: Path, names: list[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each name, in the order of the log."""
    found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        for name in names:
            if name in record:
                found[name][0].append(record["step"])
                found[name][1].append(record[name])
    return found


def smooth(values: list[float], weight: float) -> list[float]:
    """An exponential average without bias at the start."""
    total, mass, smoothed = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(total / mass)
    return smoothed


def draw(log: Path, picture: Path, names: list[str]) -> None:
    """One panel a name; many points are also shown smoothed."""
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, (name, (steps, values)) in zip(panels, curves(log, names).items(), strict=True):
        many = len(values) > 60
        panel.plot(steps, values, color="0.8" if many else "C0", marker="" if many else ".")
        if many:
            panel.plot(steps, smooth(values, 0.95), color="C0")
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
