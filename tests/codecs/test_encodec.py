"""Variants of EnCodec; tests/contract holds what is common to all codecs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cadenza.codecs.base import BufferingDecoder
from cadenza.codecs.encodec import CHUNK_FRAMES, EncodecSpec
from cadenza.core.errors import RequestError, SpecError
from cadenza.core.types import Codes, FrameFormat
from cadenza.dsp.audio import Audio
from cadenza.system.codes_io import load_codes, save_codes

VARIANTS: dict[str, dict[str, Any]] = {
    "reflect": {"pad_mode": "reflect"},
    "lstm": {"lstm_layers": 2},
    "deep": {"residual_layers": (0, 1, 3), "widths": (4, 6, 8, 10), "shortcut": "identity"},
    "plain": {"norm": "none", "shortcut": "identity", "residual_layers": 2, "pad_mode": "reflect"},
    "centred": {"causal": False, "pad_mode": "reflect"},
    "centred_lstm": {"causal": False, "lstm_layers": 1, "pad_mode": "reflect", "residual_layers": (0, 3, 2), "normalize": True},
    "centred_kernels": {"causal": False, "kernel": 4, "last_kernel": 5, "residual_kernel": 5, "pad_mode": "replicate"},
    "group_norm": {"causal": False, "norm": "time_group_norm", "channels": 2},
    "early": {"trim_right_ratio": 0.5},
    "normalized": {"normalize": True},
    "centred_and_normalized": {"normalize": True, "causal": False, "norm": "time_group_norm", "channels": 2},
}
CHUNKED = {  # chunks of 100, whose last frame is not full, or of 96 samples; frames of 32
    "half": {"chunk_seconds": 0.0125, "chunk_overlap": 0.5},
    "slight": {"chunk_seconds": 0.012, "chunk_overlap": 0.02, "causal": False, "norm": "time_group_norm", "normalize": True},
    "none": {"chunk_seconds": 0.012, "normalize": True, "channels": 2},
}


def make_spec(variant: str) -> EncodecSpec:
    return EncodecSpec.parse(EncodecSpec.example().to_dict() | (VARIANTS | CHUNKED)[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_clips_of_a_batch_equal_single_clips(variant: str) -> None:
    torch.manual_seed(0)
    spec = make_spec(variant)
    codec = spec.build().eval()
    lengths = [1000, 1, 517, 31, 32, 33]
    wave = torch.randn(len(lengths), spec.channels, 1000)  # noise in the padding, too
    audio = Audio(wave, spec.sample_rate, torch.tensor(lengths))
    codes = codec.encode(audio)
    assert codes.lengths.tolist() == [32, 1, 17, 1, 1, 2]
    decoded = codec.decode(codes)
    assert decoded.lengths.tolist() == lengths
    for i, clip in enumerate(audio):
        alone = codec.encode(clip)
        assert torch.equal(alone.ids[0], codes.ids[i, :, : codes.lengths[i]])
        torch.testing.assert_close(codec.decode(alone).wave[0], decoded.wave[i, :, : lengths[i]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", [*VARIANTS, *CHUNKED])
def test_stream_equals_the_whole(variant: str) -> None:
    torch.manual_seed(0)
    spec = make_spec(variant)
    codec = spec.build().eval()
    ids = torch.randint(0, 16, (2, 2, 25))
    scale = 0.5 + torch.rand(2, 20) if spec.normalize else None
    whole = codec.decode(Codes(ids, scale=scale)).wave
    decoder = codec.streaming_decoder()
    chunks = [decoder.push(Codes(part, scale=scale)).wave for part in ids.split([1, 2, 9, 1, 12], -1)]
    chunks.append(decoder.flush().wave)
    torch.testing.assert_close(torch.cat(chunks, -1), whole, atol=1e-5, rtol=1e-4)
    at_once = spec.causal and spec.trim_right_ratio == 1.0 and not spec.uses_chunks
    at_the_end = not at_once and not spec.uses_chunks and spec.norm == "time_group_norm"
    early = sum(chunk.shape[-1] for chunk in chunks[:-1])
    assert (early == 0) == at_the_end and (early == whole.shape[-1]) == at_once
    assert (chunks[-1].shape[-1] == 0) == at_once


@pytest.mark.parametrize("variant", ["reflect", "centred", "centred_lstm", "centred_kernels", "early", *CHUNKED])
def test_clips_of_different_lengths_in_a_stream(variant: str) -> None:
    torch.manual_seed(0)
    codec = make_spec(variant).build().eval()
    lengths = torch.tensor([25, 1, 12, 13, 20, 25, 3, 12])
    ids = torch.randint(0, 16, (len(lengths), 2, 25))
    scale = 0.5 + torch.rand(len(lengths), 20) if codec.spec.normalize else None
    whole = codec.decode(Codes(ids, lengths, scale=scale))
    for steps in ([25], [1] * 25, [12, 1, 12], [20, 5]):
        decoder, start, chunks = codec.streaming_decoder(), 0, []
        for step in steps:
            left = (lengths - start).clamp(0, step)
            chunks.append(decoder.push(Codes(ids[..., start : start + step], left, scale=scale)))
            start += step
        chunks.append(decoder.flush())
        for i, clip in enumerate(whole):
            streamed = torch.cat([list(chunk)[i].wave for chunk in chunks], -1)
            torch.testing.assert_close(streamed, clip.wave, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", ["reflect", "lstm", "centred_lstm", "group_norm", "half", "normalized"])
def test_long_clips_equal_one_pass_of_the_network(variant: str) -> None:
    torch.manual_seed(0)
    spec = make_spec(variant)
    codec = spec.build().eval()
    frames = 3 * CHUNK_FRAMES + 5 if spec.chunk_layout is None else -(-spec.chunk_layout.length // spec.hop_length)
    ids = torch.randint(0, 16, (2, 2, frames))
    with torch.no_grad():
        whole = codec.decoder(codec.quantizer.decode(ids))
    torch.testing.assert_close(codec.decode(Codes(ids)).wave, whole, atol=1e-5, rtol=1e-4)


def test_lag_of_a_lookahead_stream() -> None:
    """MusicGen's geometry lags five frames: three for the first convolution and two for the other layers."""
    spec = EncodecSpec(sample_rate=8000, strides=(8, 5, 4, 4), filters=2, dimension=4, bins=4, causal=False, lstm_layers=1)
    decoder, samples = spec.build().eval().streaming_decoder(), 0
    for count in range(1, 20):
        samples += decoder.push(Codes(torch.zeros(1, 4, 1, dtype=torch.long))).wave.shape[-1]
        assert samples == 640 * max(0, count - 5)


def test_causal_stream_returns_each_frame_at_once() -> None:
    codec = EncodecSpec.example().build().eval()
    decoder = codec.streaming_decoder()
    for _ in range(3):
        assert decoder.push(Codes(torch.zeros(1, 2, 1, dtype=torch.long))).wave.shape == (1, 1, 32)


def test_codes_of_a_causal_codec_do_not_depend_on_later_audio() -> None:
    torch.manual_seed(0)
    codec = EncodecSpec.example().build().eval()
    wave = torch.randn(1, 1, 640)
    ids = codec.encode(Audio(wave, 8000)).ids
    assert torch.equal(codec.encode(Audio(wave[..., :320], 8000)).ids, ids[..., :10])


def test_leading_codebooks_decode() -> None:
    codec = EncodecSpec.example().build().eval()
    ids = torch.randint(0, 16, (1, 2, 5))
    coarse = codec.decode(Codes(ids[:, :1])).wave
    assert coarse.shape == (1, 1, 160) and not torch.equal(coarse, codec.decode(Codes(ids)).wave)


def test_training_pass_without_codebooks() -> None:
    codec = EncodecSpec.example().build()
    wave = torch.randn(2, 1, 100)
    output = codec.forward_train(wave, num_codebooks=0)
    assert output.losses == {} and output.wave.shape == wave.shape
    torch.testing.assert_close(output.frames.z, codec.encoder(wave))  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", CHUNKED)
def test_chunks_are_encoded_separately(variant: str) -> None:
    torch.manual_seed(0)
    spec = make_spec(variant)
    codec, plain = spec.build().eval(), EncodecSpec.parse({**spec.to_dict(), "chunk_seconds": None, "chunk_overlap": 0}).build()
    plain.load_state_dict(codec.state_dict())
    length = round((spec.chunk_seconds or 0) * 8000)
    stride = int(length * (1 - spec.chunk_overlap))
    lengths = [1, 31, 32, 33, stride, stride + 1, length, length + 1, 2 * stride + 1, 2 * stride + length, 500]
    audio = Audio(torch.randn(len(lengths), spec.channels, max(lengths)), 8000, torch.tensor(lengths))
    codes = codec.encode(audio)
    decoded = codec.decode(codes)
    assert decoded.lengths.tolist() == lengths
    for clip, whole, wave in zip(codes, audio, decoded, strict=True):
        starts = range(0, whole.wave.shape[-1], stride)
        each = [plain.encode(Audio(whole.wave[..., start : start + length], 8000)) for start in starts]
        assert torch.equal(clip.ids, torch.cat([chunk.ids for chunk in each], -1))
        assert spec.num_frames(whole.wave.shape[-1]) == clip.ids.shape[-1]
        if spec.normalize:
            torch.testing.assert_close(clip.scale[:, : len(each)], torch.cat([chunk.scale for chunk in each], -1))
        waves = [plain.decode(Codes(chunk.ids, scale=chunk.scale)).wave for chunk in each]
        width = waves[0].shape[-1]
        triangle = torch.tensor([min(n, width + 1 - n) for n in range(1, width + 1)])
        total, weight = torch.zeros(2, spec.channels, 1000, dtype=torch.float64)
        for start, chunk in zip(starts, waves, strict=True):
            total[:, start : start + chunk.shape[-1]] += chunk[0] * triangle[: chunk.shape[-1]]
            weight[:, start : start + chunk.shape[-1]] += triangle[: chunk.shape[-1]]
        size = whole.wave.shape[-1]
        torch.testing.assert_close(wave.wave[0], (total / weight)[:, :size].float(), atol=1e-5, rtol=1e-4)


def test_chunked_codes_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = make_spec("slight")
    codec = spec.build().eval()
    audio = Audio(torch.randn(2, 1, 481), 8000, torch.tensor([481, 97]))
    codes = codec.encode(audio)
    save_codes(tmp_path / "codes.safetensors", codes, spec)
    again = codec.decode(load_codes(tmp_path / "codes.safetensors", spec))
    assert torch.equal(again.wave, codec.decode(codes).wave) and again.lengths.tolist() == [481, 97]
    with pytest.raises(RequestError, match="scale holds 1 of 6 chunks"):
        codec.decode(Codes(codes.ids, codes.lengths, codes.samples, codes.scale[:, :1]))


def test_loudness_is_preserved() -> None:
    torch.manual_seed(0)
    codec = make_spec("centred_and_normalized").build().eval()
    wave = 0.1 * torch.randn(1, 2, 320)
    quiet, loud = codec.encode(Audio(wave, 8000)), codec.encode(Audio(8 * wave, 8000))
    assert torch.equal(quiet.ids, loud.ids)
    torch.testing.assert_close(loud.scale, 8 * quiet.scale)
    torch.testing.assert_close(quiet.scale[0, 0], wave.mean(1).square().mean().sqrt())
    torch.testing.assert_close(codec.decode(loud).wave, 8 * codec.decode(quiet).wave)
    torch.testing.assert_close(codec.decode(loud).wave, codec.forward_train(8 * wave).wave)
    silence = codec.encode(Audio(torch.zeros(1, 2, 320), 8000))
    assert codec.decode(silence).wave.abs().max() < 1e-6


def test_bandwidths() -> None:
    torch.manual_seed(0)
    spec = EncodecSpec.parse(EncodecSpec.example().to_dict() | {"bandwidths": [1, 2]})
    codec = spec.build().eval()
    audio = Audio(torch.randn(1, 1, 320), 8000)
    full = codec.encode(audio)
    for rate, levels in ((1.0, 1), (2.0, 2)):
        coarse = codec.encode(audio, num_codebooks=spec.num_codebooks_for_bandwidth(rate))
        assert torch.equal(coarse.ids, full.ids[:, :levels])
    with pytest.raises(RequestError, match=r"1.5 kbit/s is not a bandwidth of this model; choose from 1, 2"):
        spec.num_codebooks_for_bandwidth(1.5)
    with pytest.raises(RequestError, match="cannot use 3 codebooks; give 1 to 2"):
        codec.encode(audio, num_codebooks=3)
    free = EncodecSpec(sample_rate=24000, codebooks=32)  # 75 frames of 10 bits a codebook
    assert [free.num_codebooks_for_bandwidth(rate) for rate in (0.75, 1.4, 1.5, 6, 24, 99)] == [1, 1, 2, 8, 32, 32]
    with pytest.raises(RequestError, match=r"bandwidth 0.5 kbit/s is below one codebook \(0.75 kbit/s\); choose 0.75 to 24"):
        free.num_codebooks_for_bandwidth(0.5)


def test_data_of_earlier_specs_is_unchanged() -> None:
    """Stores and caches identify a codec by the data of its spec."""
    data = EncodecSpec.example().to_dict()
    assert not data.keys() & {"normalize", "chunk_seconds", "chunk_overlap", "bandwidths"}
    assert make_spec("slight").to_dict().keys() - data.keys() == {"normalize", "chunk_seconds", "chunk_overlap"}
    assert EncodecSpec.parse(make_spec("slight").to_dict()) == make_spec("slight")


def test_frame_format_of_the_strides() -> None:
    spec = EncodecSpec(sample_rate=24000, strides=(3, 4, 5, 8), codebooks=4, bins=1024)
    assert spec.hop_length == 480 and spec.frame_format == FrameFormat("codes", 50.0, channels=4, cardinality=1024)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("norm", "layer_norm", "norm"),
        ("widths", (4, 8), "one more entry than strides (4), got 2"),
        ("residual_layers", (1, 1), "as many entries as strides (3), got 2"),
        ("filters", 1, "below compress (2)"),
        ("stride", (2, 2), "Did you mean 'strides'?"),
        ("strides", (4, 0), "strides"),
        ("chunk_overlap", 0.1, "has no effect without chunk_seconds"),
        ("chunk_seconds", 0.0001, "less than one sample"),
        ("bandwidths", (1.0,), "fits 1 codebooks instead of 2"),
    ],
)
def test_invalid_specs(field: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as error:
        EncodecSpec.parse(EncodecSpec.example().to_dict() | {field: value})
    assert message in str(error.value)


def test_audio_of_another_format() -> None:
    codec = EncodecSpec.example().build()
    with pytest.raises(RequestError, match=r"8000 Hz and 1 channel.*got 16000 Hz and 2.*resample\(8000\)\.to_channels\(1\)"):
        codec.encode(Audio(torch.zeros(1, 2, 100), 16000))
    with pytest.raises(RequestError, match="no samples"):
        codec.encode(Audio(torch.zeros(2, 1, 100), 8000, torch.tensor([100, 0])))


def test_output_is_on_the_device_of_the_codec() -> None:
    """The meta device stands for a GPU; all chunks of a stream are on the device of the codec."""
    spec = EncodecSpec.example()
    codec = spec.build().eval().to("meta")
    for decoder in (codec.streaming_decoder(), BufferingDecoder(codec)):
        chunks = [decoder.push(Codes(torch.zeros(2, 2, 5, dtype=torch.long)))]
        chunks += [decoder.flush()] if not isinstance(decoder, BufferingDecoder) else []
        assert {(chunk.wave.device.type, chunk.lengths.device.type) for chunk in chunks} == {("meta", "meta")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encodes_and_decodes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codec = EncodecSpec.example().build().eval()
    audio = Audio(0.1 * torch.randn(1, 1, 3200), 8000)
    usual, half = codec.encode(audio), codec.to(dtype).encode(audio)
    assert (half.ids == usual.ids)[:, 0].float().mean() > 0.9
    assert codec.decode(half).wave.dtype == dtype


def test_audio_that_is_not_finite() -> None:
    codec = EncodecSpec.example().build().eval()
    wave = torch.zeros(2, 1, 640)
    wave[1, 0, 5] = torch.nan
    with pytest.raises(RequestError, match="NaN or infinite"):
        codec.encode(Audio(wave, 8000))
