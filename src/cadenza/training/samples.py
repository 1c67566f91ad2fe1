"""Samples: what a run sounds like, as wav files with their spectrograms."""

import math
from pathlib import Path

import torch

from cadenza.core.errors import TrainingError
from cadenza.core.files import replacing
from cadenza.dsp.audio import Audio


def write(folder: Path, name: str, audio: Audio) -> list[tuple[str, Audio, Path]]:
    """`name-1.wav`, `name-1.png`, ... in the folder; the names, the clips and their pictures."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}; make room or allow writing there") from None
    written = []
    for i, clip in enumerate(audio, 1):
        clip = Audio(clip.wave.detach().float().cpu(), clip.sample_rate)  # noqa: PLW2901
        path = folder / f"{name}-{i}.wav"
        clip.save(path)
        picture(path.with_suffix(".png"), clip, f"{name} {i}")
        written.append((f"{name}-{i}", clip, path.with_suffix(".png")))
    return written


def picture(path: Path, audio: Audio, title: str) -> None:
    """A spectrogram in dB below its loudest point, 80 dB deep, frequency logarithmic from 40 Hz."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainingError('pictures need matplotlib: pip install "cadenza[train]", or set sample_items: 0') from None
    wave = audio.wave[0].mean(0)
    size, top = 2048, audio.sample_rate / 2
    padded = torch.nn.functional.pad(wave, (0, max(0, size - len(wave))))
    bins = torch.stft(padded, size, size // 4, window=torch.hann_window(size), return_complex=True).abs()
    level = 20 * torch.log10(bins.clamp_min(1e-7) / bins.max().clamp_min(1e-7))
    pitches = torch.logspace(math.log10(40), math.log10(top), 256)
    rows = level[(pitches / top * (size // 2)).round().long()]
    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    seconds = len(wave) / audio.sample_rate
    axes.imshow(rows.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, 256), vmin=-80, vmax=0, cmap="magma")
    marks = [hz for hz in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000) if hz <= top]
    places = [256 * math.log(hz / 40) / math.log(top / 40) for hz in marks]
    axes.set_yticks(places, [f"{hz / 1000:g}k" if hz >= 1000 else f"{hz}" for hz in marks])
    axes.set(xlabel="seconds", ylabel="Hz", title=title)
    with replacing(path, TrainingError) as file:
        figure.savefig(file, format="png")
