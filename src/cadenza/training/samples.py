"""Samples: what a run sounds like, as wav files with their spectrograms."""

from pathlib import Path

import torch

from cadenza.dsp.audio import Audio


def write(folder: Path, name: str, audio: Audio) -> list[tuple[str, Audio, Path]]:
    """`name-1.wav`, `name-1.png`, ... in the folder; the names, the clips and their pictures."""
    folder.mkdir(parents=True, exist_ok=True)
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
    from matplotlib.figure import Figure

    wave = audio.wave[0].mean(0)
    size = 2048
    padded = torch.nn.functional.pad(wave, (0, max(0, size - len(wave))))
    bins = torch.stft(padded, size, size // 4, window=torch.hann_window(size), return_complex=True).abs()
    level = 20 * torch.log10(bins.clamp_min(1e-7) / bins.max().clamp_min(1e-7))
    seconds = max(len(wave), 1) / audio.sample_rate
    frequencies = torch.arange(size // 2 + 1) * audio.sample_rate / size
    times = torch.linspace(0, seconds, level.shape[1])
    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.pcolormesh(times.numpy(), frequencies.numpy(), level.numpy(), vmin=-80, vmax=0, shading="nearest", cmap="magma")
    axes.set(yscale="log", ylim=(40, audio.sample_rate / 2), xlabel="seconds", ylabel="Hz", title=title)
    figure.savefig(path)
