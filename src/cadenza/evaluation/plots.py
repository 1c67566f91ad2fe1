"""Codes as pictures: coloured tokens."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cadenza.core.types import Codes
from cadenza.dsp.picture import new_figure, save_figure

NUMBERED = 400  # cells up to which each says its code
_GOLDEN = 0.6180339887498949  # turns of hue from one code to the next: neighbours look unlike


def plot_codes(codes: Codes, path: str | Path, *, frame_rate: float, seconds: float = 1.0) -> None:
    """The first `seconds` of the first clip: a row a codebook, a cell a frame, equal codes in equal colours."""
    shown = min(int(codes.lengths[0]), max(1, round(seconds * frame_rate)))
    ids = codes.ids[0, :, :shown].cpu().numpy()
    rows = len(ids)
    drawn = new_figure((min(14.0, 1.6 + 0.19 * max(shown, 24)), 1.1 + 0.36 * rows))
    axes = drawn.add_subplot()
    axes.imshow(code_colors(ids), aspect="auto", interpolation="nearest")
    axes.hlines(np.arange(1, rows) - 0.5, -0.5, shown - 0.5, color="white", linewidth=3)
    if ids.size <= NUMBERED:
        axes.vlines(np.arange(1, shown) - 0.5, -0.5, rows - 0.5, color="white", linewidth=1)
        for row, frame in np.ndindex(*ids.shape):
            style: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 90, "fontsize": 6, "color": "#333333"}
            axes.text(frame, row, str(ids[row, frame]), **style)
    _plain(axes)
    axes.set_yticks(range(rows), [f"codebook {row}" for row in range(rows)])
    step = max(1, round(shown / 10))
    axes.set_xticks(range(0, shown, step))
    axes.set_xlabel(f"frame ({frame_rate:g} a second)")
    save_figure(drawn, path)


def code_colors(ids: Int[np.ndarray, "k f"]) -> Float[np.ndarray, "k f 3"]:
    """A colour for each code: hues spread by the golden section, all equally light in the Oklab space (Ottosson 2020)."""
    turn = 2 * np.pi * ((ids * _GOLDEN) % 1.0)
    light, a, b = np.full(ids.shape, 0.8), 0.1 * np.cos(turn), 0.1 * np.sin(turn)
    long, medium, short = (
        (light + 0.3963377774 * a + 0.2158037573 * b) ** 3,
        (light - 0.1055613458 * a - 0.0638541728 * b) ** 3,
        (light - 0.0894841775 * a - 1.2914855480 * b) ** 3,
    )
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    linear = np.clip(np.stack([red, green, blue], -1), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _plain(axes: Any) -> None:
    """No frame and no tick marks: the cells speak."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
