"""Codec: audio to frames and back."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cadenza.core.checkpoint import check_finite, check_state_dict
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.hub import ModelSource
from cadenza.core.spec import RegisteredSpec
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn.conv import remove_weight_norm_
from cadenza.nn.weight_quantization import quantize_lstms


class CodecSpec(RegisteredSpec):
    """What every codec's spec says; the frame format follows from it before any weight exists."""

    family: ClassVar[str] = "cadenza.codecs"
    sample_rate: int
    channels: int = 1

    @property
    def frame_format(self) -> FrameFormat:
        raise NotImplementedError(f"{type(self).__name__} must define its frame format")

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return round(self.sample_rate / self.frame_format.frame_rate)

    @property
    def uses_chunks(self) -> bool:
        """Whether clips are encoded in overlapping chunks, so that they have more frames than samples / hop."""
        return False

    @property
    def has_loudness_scale(self) -> bool:
        """Whether clips are encoded at one loudness, with a factor beside their frames."""
        return False

    def num_frames(self, samples: int) -> int:
        """Frames of a clip of so many samples."""
        return -(-samples // self.hop_length)

    def num_codebooks_for_bandwidth(self, bandwidth: float) -> int:
        """Codebooks that `bandwidth` kbit/s pay for; RequestError where it pays for none."""
        frame_format = self.frame_format
        if frame_format.kind != "codes":
            raise RequestError("codec: latents have no bandwidth in kbit/s")
        each = math.log2(frame_format.cardinality) * frame_format.frame_rate / 1000
        if not bandwidth >= each * (1 - 1e-9):
            raise RequestError(
                f"codec: {bandwidth:g} kbit/s pay for no codebook; give {each:g} to {each * frame_format.channels:g}"
            )
        return min(frame_format.channels, int(bandwidth / each * (1 + 1e-9)))

    @property
    def supports_streaming(self) -> bool:
        """Whether its `decoder` gives samples before it has seen the last frame."""
        return False

    def decode_chunk_frames(self, frames: int, device: str) -> int:
        """Frames that `decode` works on at a time, of clips of so many, on a kind of device."""
        return frames

    def decode_memory_bytes(self, frames: int, *, clips: int, itemsize: int) -> int:
        """Bytes that decoding so many frames of so many clips at once takes at its peak, beside weights and audio."""
        return 256 * clips * frames * self.hop_length * self.channels * itemsize  # a guess, for those that say nothing

    @classmethod
    def example(cls) -> "CodecSpec":
        """A tiny spec, without downloads, for tests and docs."""
        raise NotImplementedError(f"{cls.__name__} must give an example")

    def build(self) -> "Codec":
        raise NotImplementedError(f"{type(self).__name__} must build its codec")


@dataclass(frozen=True)
class CodecTrainOutput:
    """What one training pass of a codec gives: the decoded wave, the frames between, and its own loss terms."""

    wave: Float[Tensor, "b c t"]
    frames: Codes | Latents  # the unquantised latents where no codebook was used
    losses: dict[str, Tensor]


class StreamingDecoder(ABC):
    """A codec decoding a batch of clips chunk by chunk; the state of one stream."""

    @abstractmethod
    def push(self, frames: Codes | Latents) -> Audio:
        """The samples that the frames so far determine and that were not returned before."""

    @abstractmethod
    def flush(self) -> Audio:
        """The remaining samples; all chunks together equal `decode` of all frames."""


class BufferingDecoder(StreamingDecoder):
    """For codecs that need the whole clip: nothing until the end, then all of it."""

    def __init__(self, codec: "Codec") -> None:
        self.codec = codec
        self.waiting: list[Any] = []

    def push(self, frames: Codes | Latents) -> Audio:
        self.waiting.append(frames)
        spec = self.codec.spec
        return Audio(torch.zeros(len(frames), spec.channels, 0, device=self.codec.device), spec.sample_rate)

    def flush(self) -> Audio:
        if not self.waiting:
            return Audio(torch.zeros(0, self.codec.spec.channels, 0, device=self.codec.device), self.codec.spec.sample_rate)
        return self.codec.decode(type(self.waiting[0]).cat(self.waiting))


class Codec(nn.Module, ABC):
    """`encode` and `decode` are inference: no gradient, input on any device, padding of a batch never leaks into a clip."""

    spec: Any

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def frame_format(self) -> FrameFormat:
        return self.spec.frame_format

    @property
    def device(self) -> torch.device:
        """Where it computes, and so where what it gives lies."""
        return next((x.device for x in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def quantize_(self) -> None:
        """From here on keeps the weights of its LSTMs in 8 bits and the others without their norm, not to be trained."""
        quantize_lstms(self)
        remove_weight_norm_(self)

    def load_weights_from(self, model: str) -> None:
        """Takes the weights of the codec of the saved system `model`, a folder or a repository of the hub."""
        source = ModelSource(model)
        described = source.read_json("system.json", of="a saved system").get("codec")
        if CodecSpec.parse(described, source=f"{model}: codec") != self.spec:
            raise CheckpointError(f"'{model}' has another codec than this one; take `codec` from its system.json, or another")
        weights = {name.removeprefix("codec."): x for name, x in source.load_state_dict(("codec.",)).items()}
        check_state_dict(weights, self.state_dict(), model)
        check_finite(weights, source=model)
        self.load_state_dict(weights)

    @abstractmethod
    def encode(self, audio: Audio, *, levels: int | None = None) -> Codes | Latents:
        """Frames of each clip, of the first `levels` codebooks where that is given (`spec.levels_for` a bandwidth).

        `samples` keeps the clips' lengths so that `decode` gives as many back.
        """

    @abstractmethod
    def decode(self, frames: Codes | Latents) -> Audio:
        """Audio of `frames.samples` samples a clip, or of all that the frames hold where that is not known.

        That is frames times hop, but for codecs that are `chunked`: there the chunks overlap.
        """

    @abstractmethod
    def streaming_decoder(self) -> StreamingDecoder:
        """A fresh stream state."""

    @torch.no_grad()
    def decode_chunked(self, frames: Codes | Latents, size: int | None) -> Audio:
        """The same as `decode`, `size` frames at a time, which takes the memory of so many; whole with None."""
        content, longest = frames.data, int(frames.lengths.max())
        if size is None or size >= longest or not self.spec.supports_streaming:
            return self.decode(frames)
        most = frames.lengths * self.spec.hop_length if frames.samples is None else frames.samples.to(frames.lengths.device)
        wave: Tensor | None = None
        done, decoder = [0] * len(frames), self.streaming_decoder()
        for first in [*range(0, longest, size), None]:
            if first is None:
                audio = decoder.flush()
            else:
                part = content[..., first : first + size]
                lengths = (frames.lengths - first).clamp(0, part.shape[-1])
                scale = {"scale": frames.scale} if isinstance(frames, Codes) else {}
                audio = decoder.push(replace(frames.with_data(part, lengths), **scale))
            if wave is None:
                wave = audio.wave.new_zeros(len(frames), audio.wave.shape[1], int(most.max()))
            for clip, count in enumerate(audio.lengths.tolist()):
                at = done[clip]
                kept = min(count, wave.shape[-1] - at)
                wave[clip, :, at : at + kept] = audio.wave[clip, :, :kept]
                done[clip] = at + kept
        assert wave is not None, "frames of no length"
        lengths = torch.minimum(torch.tensor(done, device=wave.device), most.to(wave.device))
        beyond = torch.arange(wave.shape[-1], device=wave.device) >= lengths[:, None]
        wave.masked_fill_(beyond[:, None], 0)
        return Audio(wave, self.spec.sample_rate, lengths)

    def forward_train(
        self, wave: Float[Tensor, "b c t"], *, levels: int | None = None, rng: torch.Generator | None = None
    ) -> CodecTrainOutput:
        """A differentiable pass for training; raises for a codec that cannot be trained.

        `levels` codebooks are used (all by default; with 0 the latents pass unquantised), and they learn from
        the wave where `rng` is given.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")

    def freeze_encoder(self) -> None:
        """From here on training leaves everything that `encode` depends on as it is."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")

    @property
    def latent_dim(self) -> int:
        """Numbers per frame before quantisation."""
        raise NotImplementedError(f"{type(self).__name__} must say its latent width")

    @property
    def embedding_dim(self) -> int:
        """Numbers per frame of what `vectors` gives."""
        return self.frame_format.channels if self.frame_format.kind == "latents" else self.latent_dim

    def embed(self, frames: Codes | Latents) -> Float[Tensor, "b d f"]:
        """Frames as vectors: latents as they are, codes as what their codebooks hold for them."""
        if isinstance(frames, Latents):
            return frames.z
        raise NotImplementedError(f"{type(self).__name__} must say what its codes stand for")

    def init_codebooks(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        """Codebooks made anew for latents that `reconstruct` gave with `levels=0`; raises where there are none."""
        raise NotImplementedError(f"{type(self).__name__} has no codebooks to fit")
