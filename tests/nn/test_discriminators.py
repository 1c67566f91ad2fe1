"""The discriminator of EnCodec; its values are tested in tests/training."""

import pytest
import torch

from cadenza.nn.discriminators import MultiScaleSTFTDiscriminator


@pytest.mark.parametrize("samples", [1, 200, 3000])
def test_features_halve_in_frequency_at_each_stride(samples: int) -> None:
    critic = MultiScaleSTFTDiscriminator(2, n_ffts=(256, 64), filters=3)
    for n_fft, opinion in zip((256, 64), critic(torch.randn(2, 2, samples)), strict=True):
        frames = (max(samples, n_fft) - n_fft) // (n_fft // 4) + 1
        bins = n_fft // 2 + 1
        shapes = [(frames, bins)]
        for _ in range(3):
            bins = (bins + 1) // 2
            shapes.append((frames, bins))
        shapes.append(shapes[-1])
        assert [tuple(feature.shape) for feature in opinion.features] == [(2, 3, *shape) for shape in shapes]
        assert opinion.logits.shape == (2, 1, *shapes[-1])
