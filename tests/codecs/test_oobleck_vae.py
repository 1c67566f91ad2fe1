"""Oobleck: parameter counts, activation, variants and errors."""

import pytest
import torch

from cadenza.codecs.oobleck_vae import OobleckSpec
from cadenza.core.errors import RequestError, SpecError
from cadenza.core.types import Codes, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn.oobleck import ResidualUnit, Snake

SMALL = {"type": "oobleck_vae", "sample_rate": 8000, "latent": 4}
STAGES = {"strides": [2, 4], "filters": 4, "multiples": [1, 2]}


def test_parameters_of_stable_audio_open() -> None:
    """The counts are those of the released autoencoder."""
    with torch.device("meta"):
        codec = OobleckSpec(sample_rate=44100).build()
    assert sum(x.numel() for x in codec.encoder.parameters()) == 77_989_888
    assert sum(x.numel() for x in codec.decoder.parameters()) == 78_122_626
    assert codec.spec.hop_length == 2048 and codec.frame_format.channels == 64


def test_snake() -> None:
    snake = Snake(2)
    x = torch.linspace(-3, 3, 12).view(1, 2, 6)
    with torch.no_grad():
        torch.testing.assert_close(snake(x), x + x.sin() ** 2)
        snake.alpha.copy_(torch.tensor([0.0, 2.0]).log1p())  # α 1 and 3
        snake.beta.copy_(torch.tensor([3.0, 0.0]).log1p())  # β 4 and 1
        expected = torch.stack([x[0, 0] + x[0, 0].sin() ** 2 / 4, x[0, 1] + (3 * x[0, 1]).sin() ** 2])
        torch.testing.assert_close(snake(x)[0], expected)


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_residual_unit_preserves_the_length(dilation: int) -> None:
    assert ResidualUnit(2, dilation, snake=False)(torch.zeros(1, 2, 5)).shape == (1, 2, 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"bottleneck": "none"},
        {"scale": 2.0},
        {"tanh": True},
        {"upsample": "nearest"},
        {"decoder": {"strides": [4, 2], "filters": 3, "multiples": [2, 5], "snake": False}},
        {"encoder": {"strides": [3, 5], "filters": 2, "multiples": [1, 2]}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_variants_decode_whole_frames(fields: dict[str, object]) -> None:
    codec = OobleckSpec.parse({**SMALL, "encoder": STAGES, **fields}).build()
    hop = codec.spec.hop_length
    wave = 0.3 * torch.randn(2, 2, 5 * hop, generator=torch.Generator().manual_seed(0))
    frames = codec.encode(Audio(wave, 8000))
    assert frames.z.shape == (2, 4, 5)
    assert codec.decode(frames).wave.shape == wave.shape


def test_scale_divides_the_frames() -> None:
    plain, scaled = (OobleckSpec.parse({**SMALL, "encoder": STAGES, "scale": scale}).build() for scale in (1.0, 4.0))
    scaled.load_state_dict(plain.state_dict())
    audio = Audio(torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0)), 8000)
    torch.testing.assert_close(4 * scaled.encode(audio).z, plain.encode(audio).z)
    torch.testing.assert_close(scaled.decode(scaled.encode(audio)).wave, plain.decode(plain.encode(audio)).wave)


def test_errors() -> None:
    for fields, mistake in (
        ({"encoder": {**STAGES, "multiples": [1]}}, r"multiples must have as many entries as strides \(2\), got 1"),
        ({"encoder": STAGES, "decoder": {**STAGES, "strides": [2, 2]}}, "make 4 samples a frame, those of the encoder 8"),
    ):
        with pytest.raises(SpecError, match=mistake):
            OobleckSpec.parse({**SMALL, **fields})
    codec = OobleckSpec.parse({**SMALL, "encoder": STAGES}).build()
    with pytest.raises(RequestError, match=r"expected 8000 Hz and 2 channel\(s\), got 8000 Hz and 1; use audio.resample"):
        codec.encode(Audio(torch.zeros(1, 1, 8), 8000))
    with pytest.raises(RequestError, match="latents have no codebooks"):
        codec.encode(Audio(torch.zeros(1, 2, 8), 8000), num_codebooks=1)
    with pytest.raises(RequestError, match="expected latents, got codes"):
        codec.decode(Codes(torch.zeros(1, 2, 3, dtype=torch.long)))
    assert codec.embed(Latents(torch.ones(1, 4, 3))).shape == (1, 4, 3) and codec.embedding_dim == 4
