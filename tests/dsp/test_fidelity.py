"""Distances between clips against closed forms."""

import math

import pytest
import torch

from cadenza.dsp.spectral import mel_distance, si_sdr


def test_si_sdr_of_known_noise() -> None:
    """Noise orthogonal to the target at a tenth of its energy: 10 dB, at any scale."""
    t = torch.arange(8000) / 8000
    target, noise = torch.sin(40 * torch.pi * t)[None, None], torch.cos(40 * torch.pi * t)[None, None]
    value = si_sdr(3.0 * (target + 0.1**0.5 * noise) + 0.2, target)
    torch.testing.assert_close(value, torch.tensor([10.0]), atol=1e-3, rtol=0.0)


def test_si_sdr_of_a_stereo_clip_is_one_number() -> None:
    x, y = torch.randn(3, 2, 500), torch.randn(3, 2, 500)
    assert si_sdr(x, y).shape == (3,)


def test_si_sdr_is_the_ratio_of_powers_whatever_the_level() -> None:
    rng = torch.Generator().manual_seed(1)
    signal, other = (torch.randn(1, 1, 9600, generator=rng) for _ in range(2))
    signal, other = signal - signal.mean(), other - other.mean()
    other = other - (other * signal).sum() / signal.square().sum() * signal  # nothing of the signal in it
    other = other * signal.norm() / other.norm()
    for decibel in (0.0, 10.0, 25.0):
        assert float(si_sdr(3 * (signal + other * 10 ** (-decibel / 20)), signal)) == pytest.approx(decibel, abs=1e-3)
    assert float(si_sdr(signal, signal)) > 60


def test_mel_distance_is_the_gain_in_decibel() -> None:
    wave = 0.1 * torch.randn(96000, generator=torch.Generator().manual_seed(0))
    assert mel_distance(wave, wave, 24000) == 0
    assert mel_distance(2 * wave, wave, 24000) == pytest.approx(20 * math.log10(2), abs=1e-3)
