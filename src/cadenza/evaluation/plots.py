"""Pictures of what flows: codes as coloured tokens, audio as a mel spectrogram."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from cadenza.core.errors import RequestError
from cadenza.core.files import replacing
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectra import mel_filters, mel_spectrogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH = 80.0  # dB below the loudest point that a spectrogram shows
WINDOW, MELS = 2048, 128
NUMBERED = 400  # cells up to which each says its code
_GOLDEN = 0.6180339887498949  # turns of hue from one code to the next: neighbours look unlike


def draw_codes(codes: Codes, path: str | Path, *, frame_rate: float, seconds: float = 1.0) -> None:
    """The first `seconds` of the first clip: a row a codebook, a cell a frame, equal codes in equal colours."""
    shown = min(int(codes.lengths[0]), max(1, round(seconds * frame_rate)))
    ids = codes.ids[0, :, :shown].cpu().numpy()
    rows = len(ids)
    figure = _figure((min(14.0, 1.6 + 0.19 * max(shown, 24)), 1.1 + 0.36 * rows))
    axes = figure.add_subplot()
    axes.imshow(colours(ids), aspect="auto", interpolation="nearest")
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
    _save(figure, path)


def draw_spectrogram(audio: Audio, path: str | Path, *, title: str = "") -> None:
    """The first clip, mixed to mono, as the power in 128 mel bands, in dB below its loudest point."""
    wave = next(iter(audio)).mix(1).wave.detach().float().cpu()
    power = mel_spectrogram(wave, mel_filters(audio.sample_rate, WINDOW, mels=MELS, f_min=30.0), hop=WINDOW // 8)[0, 0]
    level = 10 * (power / power.max().clamp_min(1e-10)).clamp_min(10 ** (-DEPTH / 10)).log10()
    seconds = wave.shape[-1] / audio.sample_rate
    figure = _figure((9, 3))
    axes = figure.add_subplot()
    extent = (0.0, seconds, 0.0, float(MELS))
    picture = axes.imshow(level.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-DEPTH, vmax=0, extent=extent)
    places = [hertz for hertz in (200, 500, 1000, 2000, 5000, 10000, 20000) if hertz < audio.sample_rate / 2]
    axes.set_yticks([_band(hertz, audio.sample_rate) for hertz in places], [_hertz(hertz) for hertz in places])
    _plain(axes)
    axes.set(xlabel="seconds", ylabel="Hz", title=title)
    figure.colorbar(picture, label="dB", pad=0.01)
    _save(figure, path)


def colours(ids: Int[np.ndarray, "k f"]) -> Float[np.ndarray, "k f 3"]:
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


def _band(hertz: float, sample_rate: int) -> float:
    """Where a frequency lies among the mel bands."""
    low, here, top = (2595.0 * np.log10(1.0 + f / 700.0) for f in (30.0, hertz, sample_rate / 2))
    return float((here - low) / (top - low)) * MELS


def _hertz(hertz: int) -> str:
    return f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)


def _figure(size: tuple[float, float]) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError('a picture needs matplotlib; install it with: pip install "cadenza[eval]"') from None
    return Figure(figsize=size, dpi=110, layout="constrained")


def _plain(axes: Any) -> None:
    """No frame and no tick marks: the cells speak."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)


def _save(figure: "Figure", path: str | Path) -> None:
    kind, known = Path(path).suffix.lstrip(".").lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise RequestError(f"{path}: no picture can be written as '.{kind}'; choose from: {', '.join(known)}")
    with replacing(path, RequestError) as file:
        figure.savefig(file, format=kind)
