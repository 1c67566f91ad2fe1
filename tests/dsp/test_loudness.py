"""Loudness against the tables of BS.1770-4, EBU Tech 3341's tones and pyloudnorm."""

import math

import numpy as np
import pyloudnorm
import pytest
import torch

from cadenza.dsp.audio import Audio
from cadenza.dsp.loudness import k_weighting, loudness, normalize_loudness


def tone(seconds: float, rate: int, dbfs: float, *, hz: float = 1000.0) -> torch.Tensor:
    return 10 ** (dbfs / 20) * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * rate), dtype=torch.float64) / rate)


def test_filters_are_those_of_the_recommendation_at_48_khz():
    numerators, denominators = k_weighting(48000)
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585]
    high_pass = [1, -2, 1], [1, -1.99004745483398, 0.99007225036621]
    for stage, (numerator, denominator) in enumerate([shelf, high_pass]):
        torch.testing.assert_close(numerators[stage], torch.tensor(numerator, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(denominators[stage], torch.tensor(denominator, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_full_scale_sine_reads_minus_three(rate):
    assert loudness(tone(3, rate, 0, hz=997)[None], rate) == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize(
    ("parts", "lufs"),
    [  # EBU Tech 3341, table 1, cases 1-3: stereo 1 kHz tones, seconds and dBFS
        ([(20, -23)], -23),
        ([(20, -33)], -33),
        ([(10, -36), (60, -23), (10, -36)], -23),
    ],
)
def test_ebu_tones(parts, lufs):
    wave = torch.cat([tone(seconds, 48000, dbfs) for seconds, dbfs in parts])
    assert loudness(wave.expand(2, -1), 48000) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (44100, 2), (24000, 5)])
def test_agrees_with_pyloudnorm(rate, channels):
    rng = np.random.default_rng(rate)
    swell = np.abs(np.sin(np.arange(rate * 7) / rate))[:, None] ** 4
    wave = (
        rng.standard_normal((rate * 7, channels)).cumsum(0) * 0.002 * swell
        + rng.standard_normal((rate * 7, channels)) * 0.05 * swell
    )
    expected = pyloudnorm.Meter(rate, filter_class="DeMan").integrated_loudness(wave)
    assert loudness(torch.from_numpy(wave.T.copy()), rate) == pytest.approx(expected, abs=0.02)


def test_a_long_clip_is_filtered_in_chunks_that_do_not_show():
    wave = torch.randn(1, 8000 * 130, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    expected = pyloudnorm.Meter(8000, filter_class="DeMan").integrated_loudness(wave[0].numpy())
    assert loudness(wave, 8000) == pytest.approx(expected, abs=0.002)


def test_normalize_reaches_its_aim_below_the_ceiling():
    quiet = Audio(tone(2, 48000, -40)[None, None].float(), 48000)
    assert loudness(normalize_loudness(quiet, -20.0).wave[0], 48000) == pytest.approx(-20, abs=0.01)
    with pytest.warns(UserWarning, match="clip 1 stays at -4.0 LUFS: 20 would clip its peaks"):
        loud = normalize_loudness(quiet, 20.0)
    assert float(loud.wave.abs().max()) == pytest.approx(10 ** (-1 / 20), rel=1e-6)


def test_silence_and_one_sample():
    assert loudness(torch.zeros(2, 48000), 48000) == -math.inf
    assert torch.equal(normalize_loudness(Audio(torch.zeros(1, 1, 48000), 48000), -14.0).wave, torch.zeros(1, 1, 48000))
    assert torch.isfinite(normalize_loudness(Audio(torch.ones(1, 1, 1), 48000), -14.0).wave).all()
