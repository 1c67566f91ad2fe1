"""Soundness and distances against closed forms."""

import math

import pytest
import torch

from cadenza.dsp.audio import Audio
from cadenza.evaluation.soundness import longest_gap, mel_distance, si_sdr, soundness

RATE = 24000


def noise(seconds: float = 4.0, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def clip(wave: torch.Tensor) -> Audio:
    return Audio(wave[None, None], RATE)


def test_rates_by_hand():
    holed, clipped = noise(8.0), noise().clone()
    holed[RATE : 5 * RATE] = 0
    clipped[:100] = 1.0
    found = soundness([clip(noise()), clip(torch.zeros(RATE)), clip(holed), clip(clipped)])
    assert (found.silent, found.holes, found.clipping) == (0.25, 0.25, 0.25)
    assert math.isfinite(found.lufs)


def test_nothing_but_silence():
    found = soundness([clip(torch.zeros(RATE))])
    assert (found.silent, found.lufs) == (1.0, -math.inf)


def test_gaps_in_seconds():
    wave = noise(6.0)
    wave[RATE : 3 * RATE] = 0
    assert longest_gap(wave[None], RATE) == pytest.approx(2.0, abs=0.06)
    assert longest_gap(noise()[None], RATE) == 0


def test_si_sdr_is_the_ratio_of_powers_whatever_the_level():
    signal, other = noise(seed=1), noise(seed=2)
    signal, other = signal - signal.mean(), other - other.mean()
    other = other - (other @ signal) / (signal @ signal) * signal  # nothing of the signal in it
    other = other * signal.norm() / other.norm()
    for decibel in (0.0, 10.0, 25.0):
        assert si_sdr(3 * (signal + other * 10 ** (-decibel / 20)), signal) == pytest.approx(decibel, abs=1e-3)
    assert si_sdr(signal, signal) > 60


def test_mel_distance_is_the_gain_in_decibel():
    wave = noise()
    assert mel_distance(wave, wave, RATE) == 0
    assert mel_distance(2 * wave, wave, RATE) == pytest.approx(20 * math.log10(2), abs=1e-3)
