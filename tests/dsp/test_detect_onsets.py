"""Onsets of clicks and thumps whose times are known."""

import math

import pytest
import torch
from torch import Tensor

from cadenza.dsp.pitch import detect_onsets

RATE = 16000
BANDS = [(20.0, 150.0), (150.0, 2500.0), (5000.0, 8000.0)]
KICKS, HATS = [0.0, 1.0, 2.0, 2.5, 3.0], [0.25 * i for i in range(15)]


def drums() -> Tensor:
    time = torch.arange(RATE // 4) / RATE
    kick = torch.sin(2 * math.pi * 60 * time) * torch.exp(-18 * time)
    noise = torch.fft.rfft(torch.randn(RATE // 4, generator=torch.Generator().manual_seed(0)))
    noise[:1250] = 0  # nothing below 5 kHz
    hat = 0.3 * torch.fft.irfft(noise) * torch.exp(-60 * time)
    wave = torch.zeros(4 * RATE)
    for times, sound in ((KICKS, kick), (HATS, hat)):
        for second in times:
            wave[int(second * RATE) :][: len(sound)] += sound
    return wave


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_each_band_hears_its_own_at_any_loudness(gain: float) -> None:
    low, middle, high = detect_onsets(gain * drums(), RATE, BANDS)
    assert low == pytest.approx(KICKS, abs=0.02)
    assert high == pytest.approx(HATS, abs=0.02)
    assert middle == []


def test_silence_and_a_steady_tone_have_none_after_their_start() -> None:
    assert detect_onsets(torch.zeros(RATE), RATE, BANDS) == [[], [], []]
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(RATE) / RATE)
    assert all(second < 0.05 for band in detect_onsets(tone, RATE, BANDS) for second in band)


def test_a_wave_shorter_than_a_window_is_heard() -> None:
    assert detect_onsets(torch.zeros(10), RATE, BANDS) == [[], [], []]
