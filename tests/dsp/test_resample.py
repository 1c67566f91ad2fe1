"""Resampling: exact lengths, and a band-limited tone becomes the same tone at the other rate."""

import math

import pytest
import torch

from cadenza.core.errors import AudioError
from cadenza.dsp.audio import resample


@pytest.mark.parametrize(("before", "after"), [(44_100, 32_000), (24_000, 48_000), (48_000, 16_000), (22_050, 44_100), (7, 3)])
@pytest.mark.parametrize("samples", [1, 2, 17, 4410, 10_001])
def test_length_is_the_ceiling(before, after, samples):
    assert resample(torch.zeros(2, 1, samples), before, after).shape == (2, 1, math.ceil(samples * after / before))


@pytest.mark.parametrize(("before", "after"), [(44_100, 32_000), (32_000, 44_100), (48_000, 24_000)])
def test_a_tone_stays_the_same_tone_in_phase_and_level(before, after):
    def tone(rate):
        return torch.sin(2 * math.pi * 1000 * torch.arange(rate, dtype=torch.float64) / rate + 0.3)

    out = resample(tone(before).float()[None], before, after)[0]
    inside = slice(2000, -2000)
    assert float((out - tone(after))[inside].abs().max()) < 1e-5


def test_what_the_lower_rate_cannot_hold_is_gone():
    tone = torch.sin(2 * math.pi * 15_000 * torch.arange(44_100, dtype=torch.float64) / 44_100)
    assert float(resample(tone, 44_100, 24_000)[2000:-2000].abs().max()) < 1e-5


def test_rows_do_not_mix_and_dtype_stays():
    wave = torch.randn(3, 2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = resample(wave, 3, 2)
    assert both.dtype == torch.float64
    for i in range(3):
        assert torch.equal(resample(wave[i, 1], 3, 2), both[i, 1])


def test_nothing_and_no_change():
    wave = torch.randn(1, 5)
    assert resample(wave, 8000, 8000) is wave
    assert resample(torch.zeros(2, 0), 8000, 16_000).shape == (2, 0)
    with pytest.raises(AudioError, match="sample rates must be positive"):
        resample(wave, 8000, 0)
