"""What every codec must keep, asked of every file in the folder."""

import copy
import json
import math
from collections.abc import Callable

import pytest
import torch

from cadenza.codecs.base import Codec, CodecSpec
from cadenza.core.types import Codes, Latents
from cadenza.dsp.audio import Audio

Frames = Codes | Latents


def built(spec: CodecSpec) -> Codec:
    """The codec with weights that are large enough to matter: every parameter and every codebook differs."""
    codec = spec.build().eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in codec.state_dict().values():
            if x.is_floating_point():
                x.copy_(torch.randn(x.shape, generator=rng) / max(x[0].numel() if x.ndim > 1 else 4, 1) ** 0.5 + (x.ndim < 2))
    return codec


def noise(spec: CodecSpec, *lengths: int) -> Audio:
    """Clips of these lengths, each drawn by itself, with loud garbage where the batch is padded."""
    longest = max(lengths)
    wave = torch.full((len(lengths), spec.channels, longest), 0.9)
    for i, length in enumerate(lengths):
        rng = torch.Generator().manual_seed(length)
        wave[i, :, :length] = 0.3 * torch.randn(spec.channels, length, generator=rng)
    return Audio(wave, spec.sample_rate, torch.tensor(lengths))


def content(frames: Frames) -> torch.Tensor:
    return frames.ids if isinstance(frames, Codes) else frames.z


def part(frames: Frames, start: int, stop: int) -> Frames:
    """Frames `start` to `stop` of a batch, as a generator would hand them on."""
    lengths = (frames.lengths - start).clamp(0, stop - start)
    if isinstance(frames, Codes):
        return Codes(frames.ids[..., start:stop], lengths, scale=frames.scale)
    return Latents(frames.z[..., start:stop], lengths)


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def round_trips_through_json(spec: CodecSpec) -> None:
    assert CodecSpec.parse(json.loads(spec.to_json())) == spec


def gives_back_every_length(spec: CodecSpec) -> None:
    codec, hop = built(spec), spec.hop_length
    for samples in (1, 2, hop - 1, hop, hop + 1, 3 * hop - 1, 7 * hop + 3):
        audio = noise(spec, samples)
        frames = codec.encode(audio)
        again = codec.decode(frames)
        assert again.wave.shape == audio.wave.shape, f"{samples} samples became {again.wave.shape[-1]}"
        assert again.lengths.tolist() == [samples] and again.sample_rate == spec.sample_rate
        assert torch.isfinite(again.wave).all()
        assert frames.lengths.tolist() == [content(frames).shape[-1]]


def has_the_grid_it_says(spec: CodecSpec) -> None:
    codec, frame_format = built(spec), spec.frame_format
    assert codec.frame_format == frame_format and math.isclose(spec.hop_length * frame_format.frame_rate, spec.sample_rate)
    for whole in (1, 2, 9):
        frames = codec.encode(noise(spec, whole * spec.hop_length))
        assert content(frames).shape == (1, frame_format.channels, whole)
        assert codec.encode(noise(spec, whole * spec.hop_length + 1)).lengths.tolist() == [whole + 1]
        assert isinstance(frames, Codes if frame_format.kind == "codes" else Latents)
        if isinstance(frames, Codes):
            assert 0 <= int(frames.ids.min()) and int(frames.ids.max()) < frame_format.cardinality
            assert codec.decode(Codes(frames.ids, scale=frames.scale)).lengths.tolist() == [whole * spec.hop_length]


def keeps_clips_apart(spec: CodecSpec) -> None:
    codec, hop = built(spec), spec.hop_length
    lengths = [5 * hop + 1, 1, 9 * hop, hop - 1, 3 * hop]
    together = codec.encode(noise(spec, *lengths))
    decoded = codec.decode(together)
    for length, frames, audio in zip(lengths, together, decoded, strict=True):
        alone = codec.encode(noise(spec, length))
        if isinstance(frames, Codes):
            assert torch.equal(content(frames), content(alone))
        assert_close(content(frames), content(alone))
        assert_close(audio.wave, codec.decode(alone).wave)
    swapped = codec.encode(noise(spec, *reversed(lengths)))
    for one, other in zip(together, reversed(list(swapped)), strict=True):
        assert_close(content(one), content(other))


def hears_what_it_encodes(spec: CodecSpec) -> None:
    """Otherwise every other promise could be kept with silence."""
    codec = built(spec)
    one, other = codec.encode(noise(spec, 8 * spec.hop_length)), codec.encode(noise(spec, 8 * spec.hop_length + 1))
    assert not torch.equal(content(one), content(other)[..., :8])
    assert codec.decode(one).wave.std() > 0
    assert not torch.allclose(codec.decode(one).wave, codec.decode(part(other, 0, 8)).wave)


def streams_what_it_decodes(spec: CodecSpec) -> None:
    codec, hop = built(spec), spec.hop_length
    for lengths, steps in (([11], [1] * 11), ([11], [11]), ([3, 11, 8], [2, 5, 1, 3]), ([1, 1], [1])):
        frames = codec.encode(noise(spec, *(n * hop for n in lengths)))
        whole = codec.decode(part(frames, 0, max(lengths)))
        decoder, start, chunks = codec.streaming_decoder(), 0, []
        for step in steps:
            chunks.append(decoder.push(part(frames, start, start + step)))
            start += step
        chunks.append(decoder.flush())
        for chunk in chunks:
            assert len(chunk) == len(lengths), "every chunk speaks of every clip"
            assert chunk.sample_rate == spec.sample_rate
        for i, expected in enumerate(whole):
            streamed = torch.cat([list(chunk)[i].wave for chunk in chunks], -1)
            assert_close(streamed, expected.wave)


def streams_keep_to_themselves(spec: CodecSpec) -> None:
    codec = built(spec)
    frames = codec.encode(noise(spec, 6 * spec.hop_length))
    other = codec.encode(noise(spec, 6 * spec.hop_length + 1))
    expected = codec.decode(part(frames, 0, 6)).wave
    one, two = codec.streaming_decoder(), codec.streaming_decoder()
    chunks = []
    for i in range(6):
        chunks.append(one.push(part(frames, i, i + 1)).wave)
        two.push(part(other, i, i + 1))
    assert_close(torch.cat([*chunks, one.flush().wave], -1), expected)


def loads_what_it_saved(spec: CodecSpec) -> None:
    """Into a codec built on the meta device: nothing may live outside the state dict."""
    real = built(spec)
    with torch.device("meta"):
        other = spec.build()
    assert {name: x.shape for name, x in other.state_dict().items()} == {name: x.shape for name, x in real.state_dict().items()}
    other = other.to_empty(device="cpu").eval()
    other.load_state_dict({name: x.clone() for name, x in real.state_dict().items()}, strict=True)
    audio = noise(spec, 5 * spec.hop_length + 1)
    for codec in (other, copy.deepcopy(real)):
        assert torch.equal(content(codec.encode(audio)), content(real.encode(audio)))
        assert torch.equal(codec.decode(codec.encode(audio)).wave, real.decode(real.encode(audio)).wave)


def leaves_no_gradient(spec: CodecSpec) -> None:
    codec = built(spec)
    frames = codec.encode(noise(spec, 3 * spec.hop_length))
    assert not content(frames).requires_grad
    assert not codec.decode(frames).wave.requires_grad


CONTRACT: list[Callable[[CodecSpec], None]] = [
    round_trips_through_json,
    gives_back_every_length,
    has_the_grid_it_says,
    keeps_clips_apart,
    hears_what_it_encodes,
    streams_what_it_decodes,
    streams_keep_to_themselves,
    loads_what_it_saved,
    leaves_no_gradient,
]


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("name", CodecSpec.registered_names())
def test_codec(name: str, promise: Callable[[CodecSpec], None]) -> None:
    spec = CodecSpec.lookup(name).example()
    assert spec.type == name == type(spec).__module__.rpartition(".")[2]  # type: ignore[attr-defined]
    promise(spec)
