"""Planted copies are detected; similar music is not."""

import math
import random

import pytest
import torch

from cadenza.dsp.audio import Audio
from cadenza.evaluation.memorization import audio_fingerprints, memorization_rate, nearest_distances

RATE = 24000


def tune(seed: int, seconds: float = 8.0) -> torch.Tensor:
    """Random notes of one scale, four a second, with some partials."""
    rng = random.Random(seed)
    time = torch.arange(RATE // 4) / RATE
    fade = torch.linspace(1, 0.1, RATE // 4)
    notes = []
    for _ in range(round(seconds * 4)):
        hertz = 440 * 2 ** ((rng.choice([48, 50, 52, 53, 55, 57, 59, 60, 62, 64, 65, 67]) - 69) / 12)
        notes.append(sum(torch.sin(2 * math.pi * hertz * k * time) / k for k in (1, 2, 3)) * fade)
    return 0.1 * torch.cat([torch.as_tensor(note) for note in notes])


def prints(*waves: torch.Tensor) -> list[torch.Tensor]:
    return [p for wave in waves for p in audio_fingerprints(Audio(wave[None, None], RATE))]


@pytest.fixture(scope="module")
def training() -> list[torch.Tensor]:
    return [tune(seed) for seed in range(12)]


def test_planted_copies_are_detected_and_others_are_not(training):
    rng = torch.Generator().manual_seed(0)
    exact = training[3]
    noisy = 0.3 * training[5] + 0.01 * torch.randn(training[5].shape, generator=rng)
    inside = torch.cat([tune(301, 2.0), training[7][RATE : 7 * RATE], tune(302, 1.0)])  # six seconds, from elsewhere
    fresh = [tune(seed) for seed in range(200, 205)]
    unseen = [tune(seed) for seed in range(100, 110)]
    found = memorization_rate(prints(exact, noisy, inside, *fresh), prints(*unseen), prints(*training))
    assert found.training_clips == 12
    assert all(distance < found.threshold for distance in found.nearest[:3])
    assert found.rate == pytest.approx(3 / 8)


def test_distances_of_unit_vectors():
    table = torch.eye(4)
    found = nearest_distances([table[:1], -table[1:2], torch.tensor([[0.6, 0.8, 0, 0]])], table[:2], chunk=1)
    assert found.tolist() == pytest.approx([0, math.sqrt(2), math.sqrt(2 - 1.6)], abs=1e-6)


def test_fingerprints_are_unit_vectors_blind_to_level():
    wave = tune(1, 5.0)
    one, other = prints(wave, 0.1 * wave)
    assert one.shape == (3, 128)  # windows of 3.84 s in 5.04 s of frames, every 0.48 s
    assert torch.allclose(one.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(one, other, atol=1e-3)


def test_silence_is_not_a_copy(training):
    found = memorization_rate(prints(torch.zeros(RATE * 5)), prints(tune(100), tune(101)), prints(*training))
    assert found.rate == 0
