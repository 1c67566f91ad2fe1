"""Pitch against tones whose frequency is known."""

import math

import pytest
import torch
from torch import Tensor

from cadenza.dsp.pitch import estimate_pitch, segment_notes

RATE = 16000


def tone(pitch: float, seconds: float = 0.5, partials: int = 6) -> Tensor:
    time = torch.arange(int(RATE * seconds)) / RATE
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    each = [torch.sin(2 * math.pi * hertz * k * time) / k for k in range(1, partials + 1) if hertz * k < RATE / 2]
    return torch.stack(each).sum(0)


@pytest.mark.parametrize("pitch", [41.0, 48.3, 57.0, 69.0, 76.5, 82.0])
def test_the_pitch_of_a_tone(pitch: float) -> None:
    found = estimate_pitch(tone(pitch), RATE, 50)
    assert found.shape == (25,)
    assert found[3:-3] == pytest.approx([pitch] * 19, abs=0.1)


def test_a_missing_fundamental_is_heard() -> None:
    time = torch.arange(RATE // 2) / RATE
    wave = torch.stack([torch.sin(2 * math.pi * 110 * k * time) for k in (2, 3, 4, 5)]).sum(0)
    assert estimate_pitch(wave, RATE, 50)[3:-3] == pytest.approx([45.0] * 19, abs=0.1)


def test_noise_and_silence_have_none() -> None:
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert estimate_pitch(noise, RATE, 50).isnan().float().mean() > 0.95
    assert estimate_pitch(torch.zeros(RATE), RATE, 50).isnan().all()


def test_a_line_becomes_notes() -> None:
    wave = torch.cat([tone(57), tone(60), torch.zeros(RATE // 2), tone(64)])
    found = segment_notes(estimate_pitch(wave, RATE, 50), 50)
    assert [pitch for _, _, pitch in found] == [57, 60, 64]
    for (start, end, _), (first, last) in zip(found, [(0, 0.5), (0.5, 1.0), (1.5, 2.0)], strict=True):
        assert start == pytest.approx(first, abs=0.05) and end == pytest.approx(last, abs=0.05)
