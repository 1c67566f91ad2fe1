"""Codec: audio to frames (codes or latents) and back; its spec and its streaming decoder."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from cadenza.core.checkpoint import check_finite, check_state_dict
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.hub import ModelSource
from cadenza.core.spec import RegisteredSpec
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn.conv import remove_weight_norm_
from cadenza.nn.weight_quantization import quantize_lstms

Positive = Annotated[int, Field(gt=0)]


class CodecSpec(RegisteredSpec):
    """Base of codec specs: `sample_rate` in Hz, `channels`; the frame format follows from the spec alone."""

    family: ClassVar[str] = "cadenza.codecs"
    sample_rate: int
    channels: int = 1

    @property
    def frame_format(self) -> FrameFormat:
        """Kind, frame rate and channels of the frames."""
        raise NotImplementedError(f"{type(self).__name__} must define its frame format")

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return round(self.sample_rate / self.frame_format.frame_rate)

    @property
    def uses_chunks(self) -> bool:
        """True if clips are encoded in overlapping chunks, with more frames than samples / hop length."""
        return False

    @property
    def has_loudness_scale(self) -> bool:
        """True if clips are normalized before encoding and their loudness is stored with the frames."""
        return False

    def num_frames(self, samples: int) -> int:
        """Return the number of frames of a clip of `samples` samples."""
        return -(-samples // self.hop_length)

    def num_codebooks_for_bandwidth(self, bandwidth: float) -> int:
        """Return the number of codebooks that fit in `bandwidth` kbit/s; raise RequestError if none does."""
        frame_format = self.frame_format
        if frame_format.kind != "codes":
            raise RequestError("codec: latents have no bandwidth in kbit/s")
        per_codebook = math.log2(frame_format.cardinality) * frame_format.frame_rate / 1000
        if not bandwidth >= per_codebook * (1 - 1e-9):
            raise RequestError(
                f"codec: bandwidth {bandwidth:g} kbit/s is below one codebook ({per_codebook:g} kbit/s); "
                f"choose {per_codebook:g} to {per_codebook * frame_format.channels:g}"
            )
        return min(frame_format.channels, int(bandwidth / per_codebook * (1 + 1e-9)))

    @property
    def supports_streaming(self) -> bool:
        """True if `streaming_decoder` returns samples before the last frame."""
        return False

    def decode_chunk_frames(self, frames: int, device: str) -> int:
        """Return the frames that `decode` computes at once, for clips of `frames` frames on a device type such as "cpu"."""
        return frames

    def decode_memory_bytes(self, frames: int, *, clips: int, itemsize: int) -> int:
        """Return the peak bytes of decoding `frames` frames of `clips` clips at once, without weights and audio."""
        return 256 * clips * frames * self.hop_length * self.channels * itemsize  # a rough default

    @classmethod
    def example(cls) -> "CodecSpec":
        """Return a tiny spec that needs no download, for tests and docs."""
        raise NotImplementedError(f"{cls.__name__} must give an example")

    def build(self) -> "Codec":
        """Return the codec with random weights."""
        raise NotImplementedError(f"{type(self).__name__} must build its codec")


@dataclass(frozen=True)
class CodecTrainOutput:
    """Output of a training pass: decoded wave, frames, and the codec's own loss terms."""

    wave: Float[Tensor, "b c t"]
    frames: Codes | Latents  # unquantized latents if no codebook was used
    losses: dict[str, Tensor]


class StreamingDecoder(ABC):
    """State of decoding a batch of clips chunk by chunk."""

    @abstractmethod
    def push(self, frames: Codes | Latents) -> Audio:
        """Add frames; return the samples that are now determined and were not returned before."""

    @abstractmethod
    def flush(self) -> Audio:
        """Return the remaining samples; all chunks together equal `decode` of all frames."""


class BufferingDecoder(StreamingDecoder):
    """Streaming decoder of codecs that need the whole clip: returns all samples at `flush`."""

    def __init__(self, codec: "Codec") -> None:
        self.codec = codec
        self.buffered: list[Any] = []
        self.clips = 0

    def push(self, frames: Codes | Latents) -> Audio:
        self.buffered.append(frames)
        self.clips = len(frames)
        return self.codec.empty_audio(self.clips)

    def flush(self) -> Audio:
        if not self.buffered:
            return self.codec.empty_audio(self.clips)
        return self.codec.decode(type(self.buffered[0]).cat(self.buffered))


class Codec(nn.Module, ABC):
    """Base of codecs. `encode` and `decode` compute no gradient; padding of a batch never affects a clip."""

    spec: Any

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def frame_format(self) -> FrameFormat:
        return self.spec.frame_format

    @property
    def device(self) -> torch.device:
        """Device of the weights and of all outputs."""
        return next((x.device for x in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def empty_audio(self, clips: int) -> Audio:
        """Return `clips` clips without samples, on the device and with the dtype of the weights."""
        x = next(chain(self.parameters(), self.buffers()), torch.zeros(0))
        return Audio(x.new_zeros(clips, self.spec.channels, 0), self.spec.sample_rate)

    def quantize_(self) -> None:
        """Quantize LSTM weights to int8 and remove weight norm, in place; the codec cannot be trained afterwards."""
        quantize_lstms(self)
        remove_weight_norm_(self)

    def load_weights_from(self, model: str) -> None:
        """Load the codec weights of a saved system, a folder or a hub repository; raise CheckpointError if specs differ."""
        source = ModelSource(model)
        spec = source.read_json("system.json", of="a saved system").get("codec")
        if CodecSpec.parse(spec, source=f"{model}: codec") != self.spec:
            raise CheckpointError(
                f"the codec of '{model}' differs from this one; use the `codec` of its system.json, or another model"
            )
        weights = {name.removeprefix("codec."): x for name, x in source.load_state_dict(("codec.",)).items()}
        check_state_dict(weights, self.state_dict(), model)
        check_finite(weights, source=model)
        self.load_state_dict(weights)

    @abstractmethod
    def encode(self, audio: Audio, *, num_codebooks: int | None = None) -> Codes | Latents:
        """Encode clips, with the first `num_codebooks` codebooks if given (`spec.num_codebooks_for_bandwidth`).

        `samples` of the result stores the clips' lengths. Raise RequestError for another sample rate or channel count.
        """

    @abstractmethod
    def decode(self, frames: Codes | Latents) -> Audio:
        """Decode to `frames.samples` samples for each clip; if unknown, to all samples of the frames."""

    def streaming_decoder(self) -> StreamingDecoder:
        """Return the state of a new stream; by default all samples come at `flush`."""
        return BufferingDecoder(self)

    @torch.no_grad()
    def decode_chunked(self, frames: Codes | Latents, size: int | None) -> Audio:
        """Decode `size` frames at once to bound memory; equal to `decode`. None decodes all at once."""
        longest = int(frames.lengths.max())
        if size is None or size >= longest or not self.spec.supports_streaming:
            return self.decode(frames)
        chunks, decoder = [], self.streaming_decoder()
        for first in range(0, longest, size):
            part = frames.data[..., first : first + size]
            lengths = (frames.lengths - first).clamp(0, part.shape[-1])
            scale = {"scale": frames.scale} if isinstance(frames, Codes) else {}
            chunks.append(decoder.push(replace(frames.with_data(part, lengths), **scale)))
        chunks.append(decoder.flush())
        samples = frames.lengths * self.spec.hop_length if frames.samples is None else frames.samples
        clips = zip(samples.tolist(), *chunks, strict=True)
        waves = [torch.cat([part.wave for part in parts], -1)[..., :count] for count, *parts in clips]
        return Audio.pad_and_stack([Audio(wave, self.spec.sample_rate) for wave in waves])

    def forward_train(
        self, wave: Float[Tensor, "b c t"], *, num_codebooks: int | None = None, rng: torch.Generator | None = None
    ) -> CodecTrainOutput:
        """Run a differentiable pass for training; raise NotImplementedError for a codec that cannot be trained.

        Uses `num_codebooks` codebooks (default all; 0 leaves latents unquantized); updates them by EMA if `rng` is given.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")

    def freeze_encoder(self) -> None:
        """Exclude everything that `encode` depends on from training."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")

    @property
    def latent_dim(self) -> int:
        """Width of a frame before quantization."""
        if self.frame_format.kind == "latents":
            return self.frame_format.channels
        raise NotImplementedError(f"{type(self).__name__} must define its latent width")

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors of `embed`."""
        return self.latent_dim

    def embed(self, frames: Codes | Latents) -> Float[Tensor, "b d f"]:
        """Return frames as vectors: latents unchanged, codes as the sums of their codebook entries."""
        if isinstance(frames, Latents):
            return frames.z
        raise NotImplementedError(f"{type(self).__name__} must define the vectors of its codes")

    def init_codebooks(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        """Initialize codebooks by k-means of latents that `forward_train` returned with `num_codebooks=0`."""
        raise NotImplementedError(f"{type(self).__name__} has no codebooks to initialize")

    def check_audio(self, audio: Audio) -> None:
        """Raise RequestError unless audio has this sample rate and channel count, samples in every clip, and finite values."""
        expected, given = (self.spec.sample_rate, self.spec.channels), (audio.sample_rate, audio.wave.shape[1])
        if given != expected:
            raise RequestError(
                f"codec: expected {expected[0]} Hz and {expected[1]} channel(s), got {given[0]} Hz and {given[1]}; "
                f"use audio.resample({expected[0]}).to_channels({expected[1]})"
            )
        if int(audio.lengths.min()) < 1:
            raise RequestError("codec: a clip of the batch has no samples; give at least one")
        if not bool(audio.wave.isfinite().all()):
            raise RequestError("codec: the audio contains NaN or infinite samples; fix it first")


def group_rows(keys: Sequence[Any], device: torch.device) -> Iterator[tuple[Any, Int[Tensor, " n"]]]:
    """Yield each distinct key (such as a length) with its rows: rows of one length need no padding, which would leak."""
    for key in dict.fromkeys(keys):
        yield key, torch.tensor([row for row, other in enumerate(keys) if other == key], device=device)
