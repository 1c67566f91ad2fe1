"""What happens to a dry render: a room around it, a level, an end."""

from __future__ import annotations

import numpy as np

from .piece import Plan

LEVEL = {"soft": -22.5, "medium": -19.0, "loud": -16.5, "building": -19.0, "fading": -19.0}
PEAK = 0.97
FADE_SECONDS = 0.25


def impulse(rng: np.random.Generator, decay: float, rate: int) -> np.ndarray:
    """The late sound of a room: noise of unit energy that falls by 60 dB in `decay` seconds."""
    count = int(rate * min(decay, 2.0))
    time = np.arange(count) / rate
    noise = (rng.random(count) - 0.5) * 10.0 ** (-3.0 * time / decay)
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(count, 1 / rate)
    spectrum *= (hertz / np.hypot(hertz, 180.0)) / np.hypot(1.0, hertz / 3800.0)
    tail = np.fft.irfft(spectrum, count)
    tail /= np.sqrt(np.sum(tail**2)) + 1e-12
    return np.concatenate([np.zeros(int(0.014 * rate)), tail])


def convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The signal filtered by a response, cut to the signal's length."""
    size = 1 << (len(signal) + len(response) - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]


def loudness(signal: np.ndarray, rate: int) -> float:
    """The level in dB of the 0.4 s blocks that lie within 10 dB of the mean of the audible ones."""
    block = int(0.4 * rate)
    count = max(1, len(signal) // block)
    power = np.mean(np.resize(signal, (count, block)) ** 2, axis=1) + 1e-12
    power = power[power > 1e-7] if np.any(power > 1e-7) else power
    power = power[power >= 0.1 * power.mean()]
    return float(10 * np.log10(power.mean()))


def finish(dry: np.ndarray, plan: Plan, rng: np.random.Generator, rate: int) -> np.ndarray:
    """A dry clip in its genre's room, at the level of its dynamics, never clipped, faded at the very end."""
    low, high = plan.genre.room
    decay = low + (high - low) * rng.random()
    wet = 10 ** ((-19.0 + 5.0 * rng.random() + (2.0 if decay > 1.3 else 0.0)) / 20)
    sound = dry + wet * convolve(dry, impulse(rng, decay, rate))
    level = LEVEL[plan.dynamics] - loudness(sound, rate)
    sound = sound * 10 ** (level / 20)
    fade = int(FADE_SECONDS * rate)
    sound[-fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / fade)
    peak = float(np.max(np.abs(sound)))
    return sound if peak <= PEAK else sound * (PEAK / peak)
