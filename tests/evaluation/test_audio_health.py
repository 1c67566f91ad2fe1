"""Audio health compared with closed forms."""

import math

import pytest
import torch

from cadenza.dsp.audio import Audio
from cadenza.evaluation.audio_health import audio_health, longest_gap

RATE = 24000


def noise(seconds: float = 4.0, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def clip(wave: torch.Tensor) -> Audio:
    return Audio(wave[None, None], RATE)


def test_rates_by_hand():
    holed, clipped = noise(8.0), noise().clone()
    holed[RATE : 5 * RATE] = 0
    clipped[:100] = 1.0
    found = audio_health([clip(noise()), clip(torch.zeros(RATE)), clip(holed), clip(clipped)])
    assert (found.silent, found.holes, found.clipping) == (0.25, 0.25, 0.25)
    assert math.isfinite(found.lufs)


def test_nothing_but_silence():
    found = audio_health([clip(torch.zeros(RATE))])
    assert (found.silent, found.lufs) == (1.0, -math.inf)


def test_gaps_in_seconds():
    wave = noise(6.0)
    wave[RATE : 3 * RATE] = 0
    assert longest_gap(wave[None], RATE) == pytest.approx(2.0, abs=0.06)
    assert longest_gap(noise()[None], RATE) == 0
