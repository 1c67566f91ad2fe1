"""Short pieces of music made of sines and noise, each different, none with a fault."""

import math
from pathlib import Path

import numpy as np

from cadenza.dsp import audio_io

RATE = 16_000
WORDS = ("slow", "fast", "bright", "dark", "soft", "loud", "old", "new"), ("piano", "flute", "bass", "drums", "organ", "bells")


def tune(number: int, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Notes of a scale with their own timbre, rhythm and noise, peak 0.2 to 0.95, as [samples, 1]."""
    rng = np.random.default_rng(number)
    t = np.arange(round(seconds * rate)) / rate
    wave, root = np.zeros_like(t), 110 * 2 ** (rng.integers(0, 24) / 12)
    partials = rng.uniform(0.1, 1, 6) / np.arange(1, 7)
    start = 0.0
    while start < seconds - 0.1:
        pitch = root * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        since = np.maximum(t - start, 0)
        envelope = (t >= start) * (1 - np.exp(-since * 200)) * np.exp(-since * rng.uniform(2, 6))
        phases = rng.uniform(0, 2 * math.pi, 6)
        for k, loud in enumerate(partials, 1):
            if k * pitch < 0.45 * rate:
                wave += loud * envelope * np.sin(2 * math.pi * k * pitch * t + phases[k - 1])
        wave += rng.uniform(0, 0.3) * envelope * np.exp(-since * 20) * rng.standard_normal(len(t))
        start += rng.choice([0.125, 0.25, 0.375, 0.5])
    return (wave / np.abs(wave).max() * rng.uniform(0.2, 0.95)).astype(np.float32)[:, None]


def caption(number: int) -> str:
    mood, what = WORDS
    return f"{mood[number % 8]} {what[number % 6]} number {number // 24}"


def save(path: Path, samples: np.ndarray, said: str | None, rate: int = RATE, subtype: str | None = None) -> Path:
    """An audio file with its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_io.write_samples(path, samples, rate, subtype=subtype)
    if said is not None:
        path.with_suffix(".txt").write_text(said)
    return path


def clean_folder(folder: Path, count: int = 16) -> Path:
    """Tunes in several formats with captions, among them some that look like faults and are none."""
    for number in range(count):
        save(folder / f"{number:02d}{('.wav', '.flac', '.ogg')[number % 3]}", tune(number), caption(number))
    t = np.arange(2 * RATE) / RATE
    save(folder / "crest.wav", 0.999 * np.sin(2 * math.pi * 41 * t)[:, None], "a low sine up to full scale")
    save(folder / "square.wav", 0.5 * np.sign(np.sin(2 * math.pi * 220 * t + 0.1))[:, None], "a square wave")
    tones = {"tone.wav": 440.0, "higher.wav": 445.0}
    for name, pitch in tones.items():
        save(folder / name, 0.4 * np.sin(2 * math.pi * pitch * t)[:, None], f"a tone of {pitch} Hz")
    fading = np.exp(-t * 3)[:, None] * 0.8 * np.sin(2 * math.pi * 523 * t)[:, None]
    save(folder / "fading.wav", fading, "one bell that fades")
    save(folder / "quiet.flac", 0.01 * tune(77), "far away")
    return folder
