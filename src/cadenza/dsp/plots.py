"""Figures: mel spectrograms and codec tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectral import mel_filters, mel_spectrogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DYNAMIC_RANGE = 80.0  # dB
WINDOW, MELS = 2048, 128
MIN_HZ = 30.0
MAX_LABELED_CELLS = 400  # larger token plots omit the ids
_GOLDEN_RATIO = 0.6180339887498949  # hue step from one code to the next, so that close ids differ in color


def plot_spectrogram(axes: Any, audio: Audio) -> Any:
    """Draw the first clip in mono as power in 128 mel bands, in dB below its maximum; return the image."""
    wave = next(iter(audio)).to_channels(1).wave.detach().float().cpu()
    power = mel_spectrogram(wave, mel_filters(audio.sample_rate, WINDOW, mels=MELS, f_min=MIN_HZ), hop=WINDOW // 8)[0, 0]
    level = 10 * (power / power.max().clamp_min(1e-10)).clamp_min(10 ** (-DYNAMIC_RANGE / 10)).log10()
    extent = (0.0, wave.shape[-1] / audio.sample_rate, 0.0, float(MELS))
    image = axes.imshow(level.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-DYNAMIC_RANGE, vmax=0, extent=extent)
    ticks = [hertz for hertz in (200, 500, 1000, 2000, 5000, 10000, 20000) if hertz < audio.sample_rate / 2]
    labels = [f"{hertz // 1000}k" if hertz >= 1000 else str(hertz) for hertz in ticks]
    axes.set_yticks([_band(hertz, audio.sample_rate) for hertz in ticks], labels)
    axes.set(xlabel="seconds", ylabel="Hz")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    return image


def save_spectrogram(audio: Audio, path: str | Path, *, title: str = "") -> None:
    """Save the first clip's spectrogram with a color scale."""
    figure = new_figure((9, 3))
    axes = figure.add_subplot()
    image = plot_spectrogram(axes, audio)
    axes.set_title(title)
    figure.colorbar(image, label="dB", pad=0.01)
    save_figure(figure, path)


def new_figure(size: tuple[float, float]) -> "Figure":
    """Return an empty figure of a size in inches; raise AudioError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AudioError('a picture needs matplotlib; install it with: pip install -e ".[eval]"') from None
    return Figure(figsize=size, dpi=110, layout="constrained")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Save a figure atomically, in the format of the suffix of `path` (png without one)."""
    kind, known = Path(path).suffix.lstrip(".").lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise AudioError(f"{path}: '.{kind}' is not an image format; choose from: {', '.join(known)}")
    with atomic_write(path, AudioError) as file:
        figure.savefig(file, format=kind)


def _band(hertz: float, sample_rate: int) -> float:
    """Return the position of a frequency in mel bands."""
    low, mel, top = (2595.0 * np.log10(1.0 + f / 700.0) for f in (MIN_HZ, hertz, sample_rate / 2))
    return float((mel - low) / (top - low)) * MELS


def plot_codes(codes: Codes, path: str | Path, *, frame_rate: float, seconds: float = 1.0) -> None:
    """Save the first `seconds` of the first clip's codes: one row per codebook, one cell per frame, one color per id."""
    shown = min(int(codes.lengths[0]), max(1, round(seconds * frame_rate)))
    ids = codes.ids[0, :, :shown].cpu().numpy()
    rows = len(ids)
    figure = new_figure((min(14.0, 1.6 + 0.19 * max(shown, 24)), 1.1 + 0.36 * rows))
    axes = figure.add_subplot()
    axes.imshow(code_colors(ids), aspect="auto", interpolation="nearest")
    axes.hlines(np.arange(1, rows) - 0.5, -0.5, shown - 0.5, color="white", linewidth=3)
    if ids.size <= MAX_LABELED_CELLS:
        axes.vlines(np.arange(1, shown) - 0.5, -0.5, rows - 0.5, color="white", linewidth=1)
        for row, frame in np.ndindex(*ids.shape):
            axes.text(frame, row, str(ids[row, frame]), ha="center", va="center", rotation=90, fontsize=6, color="#333333")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_yticks(range(rows), [f"codebook {row}" for row in range(rows)])
    step = max(1, round(shown / 10))
    axes.set_xticks(range(0, shown, step))
    axes.set_xlabel(f"frame ({frame_rate:g} a second)")
    save_figure(figure, path)


def code_colors(ids: Int[np.ndarray, "k f"]) -> Float[np.ndarray, "k f 3"]:
    """Return an RGB color for each id: hues in golden-ratio steps, of equal lightness in Oklab (Ottosson 2020)."""
    turn = 2 * np.pi * ((ids * _GOLDEN_RATIO) % 1.0)
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
