"""Pictures of sound: a mel spectrogram on axes, and figures as files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cadenza.core.errors import AudioError
from cadenza.core.files import atomic_write
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectra import mel_filters, mel_spectrogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH = 80.0  # dB below the loudest point that a spectrogram shows
WINDOW, MELS = 2048, 128
LOWEST = 30.0  # Hz


def plot_spectrogram(axes: Any, audio: Audio) -> Any:
    """Draws the first clip, mixed to mono, as the power in 128 mel bands, in dB below its loudest point; gives the image."""
    wave = next(iter(audio)).to_channels(1).wave.detach().float().cpu()
    power = mel_spectrogram(wave, mel_filters(audio.sample_rate, WINDOW, mels=MELS, f_min=LOWEST), hop=WINDOW // 8)[0, 0]
    level = 10 * (power / power.max().clamp_min(1e-10)).clamp_min(10 ** (-DEPTH / 10)).log10()
    extent = (0.0, wave.shape[-1] / audio.sample_rate, 0.0, float(MELS))
    image = axes.imshow(level.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-DEPTH, vmax=0, extent=extent)
    places = [hertz for hertz in (200, 500, 1000, 2000, 5000, 10000, 20000) if hertz < audio.sample_rate / 2]
    axes.set_yticks([_band(hertz, audio.sample_rate) for hertz in places], [_hertz(hertz) for hertz in places])
    axes.set(xlabel="seconds", ylabel="Hz")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    return image


def save_spectrogram(audio: Audio, path: str | Path, *, title: str = "") -> None:
    """The first clip's spectrogram as a file with a scale."""
    drawn = new_figure((9, 3))
    axes = drawn.add_subplot()
    image = plot_spectrogram(axes, audio)
    axes.set_title(title)
    drawn.colorbar(image, label="dB", pad=0.01)
    save_figure(drawn, path)


def new_figure(size: tuple[float, float]) -> "Figure":
    """An empty figure of this size in inches; AudioError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AudioError('a picture needs matplotlib; install it with: pip install "cadenza[eval]"') from None
    return Figure(figsize=size, dpi=110, layout="constrained")


def save_figure(drawn: "Figure", path: str | Path) -> None:
    """Writes a figure whole or not at all, in the format that the end of its name says (png without one)."""
    kind, known = Path(path).suffix.lstrip(".").lower() or "png", drawn.canvas.get_supported_filetypes()
    if kind not in known:
        raise AudioError(f"{path}: no picture can be written as '.{kind}'; choose from: {', '.join(known)}")
    with atomic_write(path, AudioError) as file:
        drawn.savefig(file, format=kind)


def _band(hertz: float, sample_rate: int) -> float:
    """Where a frequency lies among the mel bands."""
    low, here, top = (2595.0 * np.log10(1.0 + f / 700.0) for f in (LOWEST, hertz, sample_rate / 2))
    return float((here - low) / (top - low)) * MELS


def _hertz(hertz: int) -> str:
    return f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)
