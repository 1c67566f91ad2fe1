"""Plots of reports: adherence with its bounds, what was made beside what it was asked after."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cadenza.core.errors import RequestError
from cadenza.core.files import replacing
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectra import mel_filters, mel_spectrogram


def draw_scores(report: Any, path: Path) -> None:
    """A bar for each attribute in each setting, with the bounds of its adherence."""
    rows = [
        (f"{attribute}, {setting}", one.adherence.a)
        for setting, attributes in report.scores.items()
        for attribute, one in attributes.items()
        if not math.isnan(one.adherence.a.value)
    ]
    figure = _figure((7, 0.6 + 0.32 * max(1, len(rows))))
    axes = figure.add_subplot()
    for place, (_, a) in enumerate(rows):
        axes.barh(place, a.value, color="#4c72b0", height=0.6)
        axes.plot([a.low, a.high], [place, place], color="#222222", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(xlim=(min([0.0, *(a.low for _, a in rows)]) - 0.05, 1.1), xlabel="adherence: 0 chance, 1 reference renders")
    _save(figure, path)


def draw_pairs(made: Sequence[Audio], references: Sequence[Audio], titles: Sequence[str], path: Path) -> None:
    """Mel spectrograms of generated clips on the left, of the references through the codec on the right."""
    figure = _figure((12, 2.2 * max(1, len(made))))
    grid = figure.subplots(len(made), 2, squeeze=False)
    for row, pair, title in zip(grid, zip(made, references, strict=True), titles, strict=True):
        for axes, clip, side in zip(row, pair, ("generated", "reference through the codec"), strict=True):
            wave = clip.mix(1).wave[:1].detach().float().cpu()
            power = mel_spectrogram(wave, mel_filters(clip.sample_rate, 2048, mels=96, f_min=30.0), hop=512)[0, 0]
            level = 10 * (power / power.max().clamp(min=1e-10)).clamp(min=1e-8).log10()
            extent = (0.0, wave.shape[-1] / clip.sample_rate, 0.0, 96.0)
            axes.imshow(level.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-80, vmax=0, extent=extent)
            axes.set_title(f"{side}: {title}"[:90], fontsize=7)
            axes.set_yticks([])
    _save(figure, path)


def draw_bars(values: dict[str, float], title: str, path: Path) -> None:
    """One bar a name."""
    figure = _figure((7, 0.8 + 0.3 * max(1, len(values))))
    axes = figure.add_subplot()
    axes.barh(list(values), list(values.values()), color="#4c72b0")
    axes.invert_yaxis()
    axes.set(title=title)
    _save(figure, path)


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError('plots need matplotlib; install it with: pip install "cadenza[eval]"') from None
    return Figure(figsize=size, dpi=100, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png")
