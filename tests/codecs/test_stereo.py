"""Stereo by interleaved codebooks; tests/contract holds what is common to all codecs."""

from typing import Any

import pytest
import torch

from cadenza.codecs.base import CodecSpec
from cadenza.codecs.stereo import StereoSpec
from cadenza.core.errors import RequestError, SpecError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio

MONO = {"type": "encodec", "sample_rate": 8000, "strides": [4, 4, 2], "codebooks": 2, "bins": 16, "filters": 4, "dimension": 8}


def test_spec_follows_from_the_mono_codec() -> None:
    spec = CodecSpec.parse({"type": "stereo", "codec": MONO})
    assert spec.to_dict().keys() == {"type", "codec"} and CodecSpec.parse(spec.to_dict()) == spec
    assert (spec.sample_rate, spec.channels, spec.hop_length) == (8000, 2, 32)
    assert spec.frame_format == FrameFormat("codes", 250.0, channels=4, cardinality=16)
    assert (
        spec.num_codebooks_for_bandwidth(2.0) == 2 and spec.num_codebooks_for_bandwidth(4.0) == 4
    )  # 1 kbit/s a codebook of each channel


def test_even_rows_are_left_and_odd_rows_right() -> None:
    torch.manual_seed(0)
    codec = StereoSpec.parse({"codec": MONO}).build().eval()
    wave = torch.randn(3, 2, 500)
    lengths = torch.tensor([500, 33, 256])
    codes = codec.encode(Audio(wave, 8000, lengths))
    assert codes.lengths.tolist() == [16, 2, 8] and codes.samples.tolist() == lengths.tolist()
    for side in range(2):
        alone = codec.codec.encode(Audio(wave[:, side : side + 1], 8000, lengths))
        assert torch.equal(codes.ids[:, side::2], alone.ids)
        torch.testing.assert_close(codec.decode(codes).wave[:, side : side + 1], codec.codec.decode(alone).wave)


def test_fewer_rows() -> None:
    torch.manual_seed(0)
    codec = StereoSpec.parse({"codec": MONO}).build().eval()
    audio = Audio(torch.randn(1, 2, 320), 8000)
    codes = codec.encode(audio, num_codebooks=2)
    assert torch.equal(codes.ids, codec.encode(audio).ids[:, :2])
    assert codec.decode(codes).wave.shape == audio.wave.shape
    for call in (lambda: codec.encode(audio, num_codebooks=3), lambda: codec.decode(Codes(codes.ids[:, :1]))):
        with pytest.raises(RequestError, match="even number"):
            call()


@pytest.mark.parametrize("changes", [{"causal": False, "normalize": True}, {"normalize": True, "chunk_seconds": 0.02}])
def test_each_channel_has_a_loudness_scale(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    codec = StereoSpec.parse({"codec": {**MONO, **changes}}).build().eval()
    wave = torch.randn(2, 2, 700) * torch.tensor([0.01, 1.0])[:, None]
    codes = codec.encode(Audio(wave, 8000, torch.tensor([300, 700])))
    assert codes.scale.shape == (2, 2, 5 if codec.spec.uses_chunks else 1)
    assert torch.all(codes.scale[:, 0, 0] < 0.1 * codes.scale[:, 1, 0])
    for i, clip in enumerate(codes):
        alone = codec.encode(Audio(wave[i : i + 1, :, : int(clip.samples)], 8000))
        assert torch.equal(alone.ids, clip.ids)
        torch.testing.assert_close(codec.decode(clip).wave, codec.decode(alone).wave)


@pytest.mark.parametrize("changes", [{"causal": False, "normalize": True, "lstm_layers": 1}, {}])
def test_streams(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    codec = StereoSpec.parse({"codec": {**MONO, **changes}}).build().eval()
    codes = codec.encode(Audio(torch.randn(2, 2, 640), 8000, torch.tensor([640, 320])))
    decoder, chunks = codec.streaming_decoder(), []
    for start in range(0, 20, 5):
        left = (codes.lengths - start).clamp(0, 5)
        chunks.append(decoder.push(Codes(codes.ids[..., start : start + 5], left, scale=codes.scale)))
    assert sum(chunk.wave.shape[-1] for chunk in chunks) > 300
    chunks.append(decoder.flush())
    for i, clip in enumerate(codec.decode(codes)):
        streamed = torch.cat([list(chunk)[i].wave for chunk in chunks], -1)
        torch.testing.assert_close(streamed, clip.wave, atol=1e-5, rtol=1e-4)


def test_training_pass() -> None:
    torch.manual_seed(0)
    codec = StereoSpec.parse({"codec": MONO}).build()
    wave = torch.randn(2, 2, 320)
    left = codec.codec.forward_train(wave[:, :1])
    torch.testing.assert_close(codec.forward_train(wave).wave[:, :1], left.wave)
    output = codec.forward_train(wave, rng=torch.Generator())
    assert output.wave.shape == wave.shape and output.frames.ids.shape == (2, 4, 10)  # type: ignore[union-attr]
    unquantised = codec.forward_train(wave, num_codebooks=0)
    assert isinstance(unquantised.frames, Latents) and unquantised.frames.z.shape == (4, codec.latent_dim, 10)
    output.wave.sum().backward()
    assert all(p.grad is not None for p in codec.parameters())
    codec.freeze_encoder()
    assert not any(p.requires_grad for p in codec.codec.encoder.parameters())


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({**MONO, "channels": 2}, "expected a mono codec, but this one has 2 channels"),
        ({**MONO, "stride": 2}, "codec.stride: unknown field. Did you mean 'strides'?"),
        ({"type": "stereo", "codec": MONO}, "expected a mono codec"),
    ],
)
def test_inner_codec_must_be_mono(codec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        CodecSpec.parse({"type": "stereo", "codec": codec})
    assert message in str(error.value)


def test_sample_rate_of_the_inner_codec() -> None:
    with pytest.raises(SpecError, match="sample_rate is 8000 by the codec"):
        StereoSpec.parse({"codec": MONO, "sample_rate": 16000})


def test_audio_of_another_format() -> None:
    with pytest.raises(RequestError, match=r"2 channel\(s\), got 8000 Hz and 1; use audio.resample\(8000\).to_channels\(2\)"):
        StereoSpec.example().build().encode(Audio(torch.zeros(1, 1, 100), 8000))
    with pytest.raises(RequestError, match="8000 Hz"):
        StereoSpec.example().build().encode(Audio(torch.zeros(1, 2, 100), 44100))


def test_vectors_of_both_channels_are_concatenated() -> None:
    codec = StereoSpec.example().build()
    mono = codec.codec
    wave = torch.randn(2, 2, 160, generator=torch.Generator().manual_seed(0))
    frames = codec.encode(Audio(wave, codec.spec.sample_rate))
    vectors = codec.embed(frames)
    assert vectors.shape[1] == codec.embedding_dim == 2 * mono.latent_dim
    for side, half in enumerate(vectors.chunk(2, 1)):
        alone = mono.encode(Audio(wave[:, side : side + 1], codec.spec.sample_rate))
        torch.testing.assert_close(half, mono.embed(alone))
