"""Stereo with a mono codec: channels are encoded separately, their codebooks interleaved (MusicGen, arXiv:2306.05284)."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from cadenza.codecs.base import Codec, CodecSpec, CodecTrainOutput, StreamingDecoder
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio


class StereoSpec(CodecSpec):
    """Spec of a stereo codec: even rows are codebooks of the left channel, odd rows of the right one."""

    type: Literal["stereo"] = "stereo"
    codec: CodecSpec
    sample_rate: int = Field(default=0, exclude=True)
    channels: int = Field(default=2, exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> "StereoSpec":
        if self.codec.channels != 1:
            raise ValueError(f"codec: expected a mono codec, but this one has {self.codec.channels} channels")
        if self.codec.frame_format.kind != "codes":
            raise ValueError("codec: expected a codec of codes, but this one encodes latents")
        for name, value in (("sample_rate", self.codec.sample_rate), ("channels", 2)):
            if name in self.model_fields_set and getattr(self, name) != value:
                raise ValueError(f"{name} is {value} by the codec; leave it out")
            object.__setattr__(self, name, value)
        self.model_fields_set.difference_update({"sample_rate", "channels"})
        return self

    @property
    def frame_format(self) -> FrameFormat:
        side = self.codec.frame_format
        return FrameFormat("codes", side.frame_rate, channels=2 * side.channels, cardinality=side.cardinality)

    @property
    def uses_chunks(self) -> bool:
        return self.codec.uses_chunks

    @property
    def has_loudness_scale(self) -> bool:
        return self.codec.has_loudness_scale

    def num_frames(self, samples: int) -> int:
        return self.codec.num_frames(samples)

    def num_codebooks_for_bandwidth(self, bandwidth: float) -> int:
        """Return the rows that fit in `bandwidth` kbit/s for both channels."""
        return 2 * self.codec.num_codebooks_for_bandwidth(bandwidth / 2)

    @property
    def supports_streaming(self) -> bool:
        return self.codec.supports_streaming

    def decode_chunk_frames(self, frames: int, device: str) -> int:
        return self.codec.decode_chunk_frames(frames, device)

    def decode_memory_bytes(self, frames: int, *, clips: int, itemsize: int) -> int:
        return self.codec.decode_memory_bytes(frames, clips=2 * clips, itemsize=itemsize)

    @classmethod
    def example(cls) -> "StereoSpec":
        mono = {"type": "encodec", "sample_rate": 8000, "strides": (4, 4, 2), "codebooks": 2, "bins": 16}
        return cls.parse({"codec": {**mono, "filters": 4, "dimension": 8}})

    def build(self) -> "Stereo":
        return Stereo(self)


class Stereo(Codec):
    """Stereo codec: the mono codec processes both channels as a batch of twice as many clips; `scale` is [b 2 s]."""

    spec: StereoSpec

    def __init__(self, spec: StereoSpec) -> None:
        super().__init__(spec)
        self.codec = spec.codec.build()

    def encode(self, audio: Audio, *, num_codebooks: int | None = None) -> Codes:
        self.check_audio(audio)
        if num_codebooks is not None and (num_codebooks < 2 or num_codebooks % 2):
            raise RequestError(f"codec: {num_codebooks} rows do not divide between two channels; give an even number from 2")
        sides = Audio(rearrange(audio.wave, "b c t -> (b c) 1 t"), audio.sample_rate, audio.lengths.repeat_interleave(2))
        codes = self.codec.encode(sides, num_codebooks=None if num_codebooks is None else num_codebooks // 2)
        assert isinstance(codes, Codes)
        return _join_channels(codes)

    def decode(self, frames: Codes | Latents) -> Audio:
        return _pair_channels(self.codec.decode(_split_channels(frames)))

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a stream that returns samples as soon as the mono codec's does."""
        return StereoStreamingDecoder(self.codec.streaming_decoder())

    def forward_train(
        self, wave: Float[Tensor, "b c t"], *, num_codebooks: int | None = None, rng: torch.Generator | None = None
    ) -> CodecTrainOutput:
        """Run a differentiable pass; each channel uses half of `num_codebooks`, rounded up."""
        per_channel = None if num_codebooks is None else -(-num_codebooks // 2)
        output = self.codec.forward_train(rearrange(wave, "b c t -> (b c) 1 t"), num_codebooks=per_channel, rng=rng)
        frames = _join_channels(output.frames) if isinstance(output.frames, Codes) else output.frames
        return CodecTrainOutput(rearrange(output.wave, "(b c) 1 t -> b c t", c=2), frames, output.losses)

    def freeze_encoder(self) -> None:
        self.codec.freeze_encoder()

    @property
    def latent_dim(self) -> int:
        return self.codec.latent_dim

    @property
    def embedding_dim(self) -> int:
        return 2 * self.codec.embedding_dim

    def embed(self, frames: Codes | Latents) -> Float[Tensor, "b d f"]:
        """Return the vectors of the left channel, then of the right one."""
        return rearrange(self.codec.embed(_split_channels(frames)), "(b c) d f -> b (c d) f", c=2)

    def init_codebooks(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        self.codec.init_codebooks(latents, rng)


class StereoStreamingDecoder(StreamingDecoder):
    """Stream of the mono codec, which decodes two clips for each stereo clip."""

    def __init__(self, decoder: StreamingDecoder) -> None:
        self.decoder = decoder

    def push(self, frames: Codes | Latents) -> Audio:
        return _pair_channels(self.decoder.push(_split_channels(frames)))

    def flush(self) -> Audio:
        return _pair_channels(self.decoder.flush())


def _split_channels(frames: Codes | Latents) -> Codes:
    """Return the channels of each clip as two clips."""
    if not isinstance(frames, Codes):
        raise RequestError("codec: expected codes, got latents; decode each channel with the mono codec")
    if (rows := frames.ids.shape[1]) % 2:
        raise RequestError(f"codec: {rows} rows do not divide between two channels; give all rows, or an even number")
    scale = None if frames.scale is None else frames.scale.flatten(0, 1)
    samples = None if frames.samples is None else frames.samples.repeat_interleave(2)
    ids = rearrange(frames.ids, "b (k c) f -> (b c) k f", c=2)
    return Codes(ids, frames.lengths.repeat_interleave(2), samples, scale)


def _join_channels(codes: Codes) -> Codes:
    """Return each pair of clips, left and right, as one clip."""
    scale = None if codes.scale is None else codes.scale.unflatten(0, (-1, 2))
    samples = None if codes.samples is None else codes.samples[::2]
    ids = rearrange(codes.ids, "(b c) k f -> b (k c) f", c=2)
    return Codes(ids, codes.lengths[::2], samples, scale)


def _pair_channels(audio: Audio) -> Audio:
    wave = rearrange(audio.wave, "(b c) 1 t -> b c t", c=2)
    return Audio(wave, audio.sample_rate, audio.lengths[::2])
