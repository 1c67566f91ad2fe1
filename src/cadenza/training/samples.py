"""Samples: what a run sounds like, as wav files with their spectrograms."""

from pathlib import Path

from cadenza.core.errors import TrainingError
from cadenza.dsp.audio import Audio
from cadenza.dsp.picture import save_spectrogram


def save_samples(folder: Path, name: str, audio: Audio) -> list[tuple[str, Audio, Path]]:
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
        save_spectrogram(clip, path.with_suffix(".png"), title=f"{name} {i}")
        written.append((f"{name}-{i}", clip, path.with_suffix(".png")))
    return written
