"""Plots of reports: adherence with its bounds, what was made beside what it was asked after."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cadenza.dsp.audio import Audio
from cadenza.dsp.picture import new_figure, plot_spectrogram, save_figure


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
