"""Pictures of sounds, against those of transformers and by what they are made of."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from cadenza.dsp.spectral import LogMelFrontend, slaney_mel_filters

SIZES: dict[str, Any] = {
    "sample_rate": 8000,
    "samples": 8000,
    "hop": 100,
    "n_fft": 256,
    "n_mels": 20,
    "f_min": 30,
    "f_max": 3500,
}


@pytest.mark.parametrize(("low", "high", "mels"), [(0, 4000, 20), (50, 14000, 64), (30, 900, 8)])
def test_slaney_filters(low: float, high: float, mels: int) -> None:
    rate = 48000 if high > 4000 else 8000
    theirs = mel_filter_bank(257, mels, low, high, rate, norm="slaney", mel_scale="slaney")
    ours = slaney_mel_filters(rate, 512, mels=mels, f_min=low, f_max=high)
    np.testing.assert_allclose(ours.numpy(), theirs.T, atol=1e-12)


@pytest.mark.parametrize("fill", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_pictures_of_short_sounds_are_those_of_transformers(scale: Any, fill: Any) -> None:
    extractor = ClapFeatureExtractor(
        feature_size=20, sampling_rate=8000, hop_length=100, max_length_s=1, fft_window_size=256, frequency_min=30,
        frequency_max=3500, padding=fill, truncation="fusion" if scale == "htk" else "rand_trunc",
    )  # fmt: skip
    ours = LogMelFrontend(**SIZES, scale=scale, fill=fill)
    rng = torch.Generator().manual_seed(0)
    for samples in (8000, 7999, 2600, 300):
        wave = torch.randn(samples, generator=rng) * torch.linspace(1e-3, 1, samples)
        theirs = torch.as_tensor(np.array(extractor(wave.numpy(), sampling_rate=8000)["input_features"]))[0, 0]
        made = ours(wave, stride=1.0)
        assert made.shape == (1, *ours.shape) and theirs.shape == ours.shape, json.dumps(ours.shape)
        torch.testing.assert_close(made[0], theirs.float(), atol=1e-3, rtol=1e-4)


def test_a_long_sound_is_pictured_window_by_window() -> None:
    pictures = LogMelFrontend(**SIZES, scale="slaney", fill="repeatpad")
    wave = torch.randn(8000 * 2 + 3999, generator=torch.Generator().manual_seed(0))
    made = pictures(wave, stride=0.5)
    assert len(made) == 3, "what is left after 2 s is less than a stride"
    for i, picture in enumerate(made):
        torch.testing.assert_close(picture, pictures(wave[i * 4000 : i * 4000 + 8000], stride=0.5)[0])
    assert (pictures(torch.zeros(10), stride=1.0) == -100).all()
