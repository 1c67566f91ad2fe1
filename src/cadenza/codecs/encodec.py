"""EnCodec: a SEANet autoencoder with residual vector quantisation (Défossez et al. 2022)."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_serializer, model_validator
from torch import Tensor

from cadenza.codecs.base import BufferingDecoder, Codec, CodecSpec, CodecTrainOutput, StreamingDecoder
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn import seanet
from cadenza.nn.conv import ConvConfig, Norm, PadMode, StreamState, without_weight_norm
from cadenza.nn.streaming import BatchStream, ChunkedStream, ChunkLayout, LookaheadStream, overlap_add
from cadenza.nn.vector_quantize import ResidualVectorQuantizer

PIECE = 64  # frames decoded at a time
Kind = TypeVar("Kind", bound=Hashable)
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class EncodecSpec(CodecSpec):
    """`strides` are those of the decoder, outermost last.

    Channels are `filters` at the sample rate and double at each stride unless `widths` lists them, from the sample
    rate to the frame rate; `residual_layers` may likewise be listed, for all rates but the last. With `chunk_seconds`
    a clip is encoded in chunks, each of which overlaps the next by the share `chunk_overlap`; `normalize` encodes each
    chunk, or the clip where there are none, at loudness 1 and keeps its own. `bandwidths` are the kbit/s that it was
    trained for, the last that of all codebooks.
    """

    type: Literal["encodec"] = "encodec"
    sample_rate: Positive
    channels: Positive = 1
    strides: tuple[Positive, ...] = (8, 5, 4, 2)
    codebooks: Positive = 4
    bins: Positive = 1024
    filters: Positive = 32
    widths: tuple[Positive, ...] | None = None
    dimension: Positive = 128
    causal: bool = True
    norm: Norm = "weight_norm"
    pad_mode: PadMode = "constant"
    lstm_layers: Count = 0
    residual_layers: Count | tuple[Count, ...] = 1
    residual_kernel: Positive = 3
    kernel: Positive = 7
    last_kernel: Positive = 7
    dilation_base: Positive = 2
    compress: Positive = 2
    shortcut: Literal["conv", "identity"] = "conv"
    trim_right_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0  # of causal transposed convolutions
    normalize: bool = False
    chunk_seconds: Annotated[float, Field(gt=0)] | None = None
    chunk_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bandwidths: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_serializer(mode="wrap")
    def _lean(self, handler: Any) -> dict[str, Any]:
        """Without what is unused, so that what was written before these fields were known is equal as data too."""
        unused = {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unused}

    @model_validator(mode="after")
    def _fits(self) -> "EncodecSpec":
        levels = len(self.strides)
        if self.widths is not None and len(self.widths) != levels + 1:
            raise ValueError(f"widths must have one more entry than strides ({levels + 1}), got {len(self.widths)}")
        if isinstance(self.residual_layers, tuple) and len(self.residual_layers) != levels:
            raise ValueError(
                f"residual_layers must have as many entries as strides ({levels}), got {len(self.residual_layers)}"
            )
        thin = [width for width in self.seanet_config.widths[:-1] if width < self.compress]
        if thin:
            raise ValueError(
                f"widths {thin} are less than compress ({self.compress}) and leave nothing; change them, or filters"
            )
        if not self.causal and self.trim_right_ratio != 1.0:
            raise ValueError(f"trim_right_ratio {self.trim_right_ratio:g} is for causal codecs; set it to 1, or causal to true")
        if self.chunk_overlap and self.chunk_seconds is None:
            raise ValueError("chunk_overlap says nothing without chunk_seconds; give both or none")
        if self.chunk_seconds is not None and self.chunk_seconds * self.sample_rate < 1:
            raise ValueError(f"chunk_seconds {self.chunk_seconds:g} are less than a sample; give more")
        if self.bandwidths and (full := self.num_codebooks_for_bandwidth(self.bandwidths[-1])) != self.codebooks:
            raise ValueError(
                f"the last of bandwidths pays for {full} codebooks instead of {self.codebooks}; change one of them"
            )
        return self

    @property
    def frame_format(self) -> FrameFormat:
        return FrameFormat("codes", self.sample_rate / self.hop_length, channels=self.codebooks, cardinality=self.bins)

    @property
    def hop_length(self) -> int:
        return math.prod(self.strides)

    @property
    def uses_chunks(self) -> bool:
        return self.chunk_seconds is not None

    @property
    def has_loudness_scale(self) -> bool:
        return self.normalize

    @property
    def chunk_layout(self) -> ChunkLayout | None:
        if self.chunk_seconds is None:
            return None
        length = int(self.chunk_seconds * self.sample_rate)
        return ChunkLayout(length, max(1, int((1.0 - self.chunk_overlap) * length)))

    def chunk_spans(self, samples: int) -> list[tuple[int, int]]:
        """Start and stop of what is encoded at a time."""
        return [(0, samples)] if self.chunk_layout is None else self.chunk_layout.spans(samples)

    def num_frames(self, samples: int) -> int:
        return sum(self._frames_each(samples))

    def num_codebooks_for_bandwidth(self, bandwidth: float) -> int:
        """Codebooks that `bandwidth` kbit/s pay for; RequestError where the model was not trained for it."""
        if not self.bandwidths:
            return super().num_codebooks_for_bandwidth(bandwidth)
        if bandwidth not in self.bandwidths:
            known = ", ".join(f"{known:g}" for known in self.bandwidths)
            raise RequestError(f"codec: {bandwidth:g} kbit/s is no bandwidth of this model; choose from {known}")
        each = math.log2(self.bins) * -(-self.sample_rate // self.hop_length)  # with whole frames, as transformers counts
        return max(1, min(self.codebooks, math.floor(bandwidth * 1000 / each)))

    def frames_per_chunk(self, frames: int, samples: int | None) -> tuple[int, ...]:
        """Frames of each chunk: those of a clip of `samples` samples, or else all chunks but the last are whole."""
        if self.chunk_layout is None:
            return (frames,)
        if samples is not None and sum(each := self._frames_each(samples)) == frames:
            return each
        whole = -(-self.chunk_layout.length // self.hop_length)
        return tuple(min(whole, frames - start) for start in range(0, frames, whole))

    def _frames_each(self, samples: int) -> tuple[int, ...]:
        return tuple(-(-(stop - start) // self.hop_length) for start, stop in self.chunk_spans(samples))

    @property
    def seanet_config(self) -> seanet.SeanetConfig:
        """The shape of the encoder and the decoder."""
        layers = self.residual_layers
        return seanet.SeanetConfig(
            channels=self.channels,
            dimension=self.dimension,
            strides=self.strides,
            widths=self.widths or [self.filters * 2**level for level in range(len(self.strides) + 1)],
            residual_layers=layers if isinstance(layers, tuple) else [layers] * len(self.strides),
            kernel=self.kernel,
            last_kernel=self.last_kernel,
            residual_kernel=self.residual_kernel,
            dilation_base=self.dilation_base,
            compress=self.compress,
            conv_shortcut=self.shortcut == "conv",
            lstm_layers=self.lstm_layers,
            style=ConvConfig(self.causal, self.norm, self.pad_mode, self.trim_right_ratio),
        )

    @property
    def supports_streaming(self) -> bool:
        return not self.uses_chunks and self.norm != "time_group_norm"

    def decode_chunk_frames(self, frames: int, device: str) -> int:
        return PIECE if self.supports_streaming and device == "cpu" and frames > 2 * PIECE else frames

    def decode_memory_bytes(self, frames: int, *, clips: int, itemsize: int) -> int:
        return clips * frames * seanet.peak_activations_per_frame(self.seanet_config) * itemsize

    @classmethod
    def example(cls) -> "EncodecSpec":
        return cls(sample_rate=8000, strides=(4, 4, 2), codebooks=2, bins=16, filters=4, dimension=8)

    def build(self) -> "Encodec":
        return Encodec(self)


class Encodec(Codec):
    """Codes of residual codebooks over the frames of a convolutional autoencoder.

    Of a codec in chunks, the frames of all chunks stand one after another, so that a clip has more of them than its
    samples / hop; they decode whole, or from the first on. `scale` [b s] is the loudness of each chunk, or with s = 1
    that of the clip. How many frames the last two chunks have follows from `samples`; where that is not known, every
    chunk but the last is taken to be whole.
    """

    spec: EncodecSpec

    def __init__(self, spec: EncodecSpec) -> None:
        super().__init__(spec)
        self.encoder = seanet.Encoder(spec.seanet_config)
        self.quantizer = ResidualVectorQuantizer(spec.dimension, codebooks=spec.codebooks, bins=spec.bins)
        self.decoder = seanet.Decoder(spec.seanet_config)

    @torch.no_grad()
    def encode(self, audio: Audio, *, levels: int | None = None) -> Codes:
        self._check(audio)
        levels = self._checked(levels)
        audio = audio.to(self.device)
        lengths = audio.lengths.tolist()
        frames = torch.tensor([self.spec.num_frames(length) for length in lengths], device=self.device)
        ids = audio.wave.new_zeros(len(audio), levels, int(frames.max()), dtype=torch.long)
        most = max(len(self.spec.chunk_spans(length)) for length in lengths)
        scale = audio.wave.new_ones(len(audio), most, dtype=torch.float32) if self.spec.normalize else None
        for length, rows in _grouped(lengths, self.device):
            start = 0
            for number, (first, last) in enumerate(self.spec.chunk_spans(length)):
                wave, loudness = self._levelled(audio.wave[rows, :, first:last].to(self.quantizer.dtype))
                codes = self.quantizer.encode(self.encoder(wave), levels=levels)
                ids[rows, :, start : start + codes.shape[-1]] = codes
                start += codes.shape[-1]
                if scale is not None and loudness is not None:
                    scale[rows, number] = loudness[:, 0, 0].to(scale.dtype)
        return Codes(ids, frames, samples=audio.lengths, scale=scale)

    @torch.no_grad()
    def decode(self, frames: Codes | Latents) -> Audio:
        """Audio of codes, or of latents before quantisation; at loudness 1 where there is no `scale`."""
        frames = frames.to(self.device)
        latents = self.dequantize(frames)
        known = [None] * len(latents) if frames.samples is None else frames.samples.tolist()
        layouts = [self.spec.frames_per_chunk(*size) for size in zip(frames.lengths.tolist(), known, strict=True)]
        gain = _gain(frames, max(map(len, layouts)))
        waves = latents.new_zeros(len(latents), self.spec.channels, max(map(self._samples, layouts)))
        for layout, rows in _grouped(layouts, self.device):
            ends = [sum(layout[: i + 1]) for i in range(len(layout))]
            parts = [self._decoded(latents[rows, :, end - size : end]) for end, size in zip(ends, layout, strict=True) if size]
            if gain is not None:
                parts = [part * gain[rows, i, None, None] for i, part in enumerate(parts)]
            if parts:
                wave = parts[0] if self.spec.chunk_layout is None else overlap_add(parts, self.spec.chunk_layout.stride)
                waves[rows, :, : wave.shape[-1]] = wave.to(waves.dtype)  # under autocast it is another
        samples = torch.tensor([self._samples(layout) for layout in layouts], device=self.device)
        if frames.samples is not None:
            samples = torch.minimum(frames.samples, samples)
        return Audio(waves[..., : int(samples.max())], self.spec.sample_rate, samples)

    def streaming_decoder(self) -> StreamingDecoder:
        """A stream that returns the samples of each frame at once where the codec is causal, or a few frames later.

        Those of a codec in chunks come chunk by chunk, and all at the end where the norm looks at the whole clip.
        """
        spec = self.spec
        if spec.chunk_layout is not None:
            frames = -(-spec.chunk_layout.length // spec.hop_length)
            return LookaheadDecoder(
                self, ChunkedStream(without_weight_norm(self.decoder), frames=frames, stride=spec.chunk_layout.stride)
            )
        if spec.norm == "time_group_norm":
            return BufferingDecoder(self)
        if spec.causal and spec.trim_right_ratio == 1.0:
            return CausalDecoder(self)
        return LookaheadDecoder(self, LookaheadStream(without_weight_norm(self.decoder), spec.seanet_config))

    def forward_train(
        self, wave: Float[Tensor, "b c t"], *, levels: int | None = None, rng: torch.Generator | None = None
    ) -> CodecTrainOutput:
        """A differentiable pass, of the wave as one chunk."""
        levelled, loudness = self._levelled(wave)
        latents = self.encoder(levelled)
        frames: Codes | Latents = Latents(latents)
        losses = {}
        if levels != 0:
            quantized = self.quantizer(latents, levels=levels, rng=rng)
            latents = quantized.latents.to(latents.dtype)
            frames = Codes(quantized.codes, scale=None if loudness is None else loudness[:, 0])
            losses = {"commitment": quantized.commitment}
        decoded = self.decoder(latents)[..., : wave.shape[-1]]
        return CodecTrainOutput(decoded if loudness is None else decoded * loudness, frames, losses)

    def freeze_encoder(self) -> None:
        self.encoder.requires_grad_(False)

    @property
    def latent_dim(self) -> int:
        return self.spec.dimension

    def embed(self, frames: Codes | Latents) -> Float[Tensor, "b d f"]:
        return self.dequantize(frames.to(self.device))

    def init_codebooks(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        self.quantizer.kmeans_init(latents, rng)

    def dequantize(self, frames: Codes | Latents) -> Float[Tensor, "b d f"]:
        """What the synthesis network is given for these frames."""
        return frames.z if isinstance(frames, Latents) else self.quantizer.decode(frames.ids)

    def _decoded(self, z: Float[Tensor, "b d f"]) -> Float[Tensor, "b c t"]:
        """The wave of frames; a CPU makes a long one in pieces, which takes half the time and little memory."""
        whole = self.spec.uses_chunks or self.spec.norm == "time_group_norm" or z.device.type != "cpu"
        if whole or z.shape[-1] <= 2 * PIECE:
            return self.decoder(z)
        decoder = self.streaming_decoder()
        parts = [decoder.push(Latents(part)).wave for part in z.split(PIECE, -1)]
        return torch.cat([*parts, decoder.flush().wave], -1)

    def _levelled(self, wave: Float[Tensor, "b c t"]) -> tuple[Float[Tensor, "b c t"], Float[Tensor, "b 1 1"] | None]:
        """What the analysis network is given, and the loudness that was taken from it."""
        if not self.spec.normalize:
            return wave, None
        loudness = wave.float().mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8
        return (wave / loudness).to(wave.dtype), loudness

    def _samples(self, layout: Sequence[int]) -> int:
        """Samples of a clip whose chunks have so many frames."""
        stride = 0 if self.spec.chunk_layout is None else self.spec.chunk_layout.stride
        return max((i * stride + frames * self.spec.hop_length for i, frames in enumerate(layout)), default=0)

    def _checked(self, levels: int | None) -> int:
        if levels is None:
            return self.spec.codebooks
        if not 1 <= levels <= self.spec.codebooks:
            raise RequestError(f"codec: cannot use {levels} codebooks; give 1 to {self.spec.codebooks}")
        return levels

    def _check(self, audio: Audio) -> None:
        want = (self.spec.sample_rate, self.spec.channels)
        got = (audio.sample_rate, audio.wave.shape[1])
        if got != want:
            mend = f"audio.resample({want[0]}).mix({want[1]})"
            raise RequestError(
                f"codec: expected {want[0]} Hz and {want[1]} channel(s), got {got[0]} Hz and {got[1]}; use {mend}"
            )
        if int(audio.lengths.min()) < 1:
            raise RequestError("codec: a clip of the batch has no samples; give at least one")
        if not bool(audio.wave.isfinite().all()):
            raise RequestError("codec: the audio holds NaN or infinite samples; mend it first")


class CausalDecoder(StreamingDecoder):
    """Decodes each chunk with what the layers carry over from the one before."""

    def __init__(self, codec: Encodec) -> None:
        self.codec = codec
        self.decoder = without_weight_norm(codec.decoder)
        self.carried: StreamState = {}
        self.waiting: list[Latents] = []  # frames before there are enough to start with
        self.clips = 0
        self.gain: Tensor | None = None

    @torch.no_grad()
    def push(self, frames: Codes | Latents) -> Audio:
        frames = frames.to(self.codec.device)
        latents = Latents(self.codec.dequantize(frames), frames.lengths)
        self.clips = len(latents)
        self.gain = _gain(frames, 1)
        if self.carried:
            return self._audio(self.decoder(latents.z, self.carried), latents.lengths * self.codec.spec.hop_length)
        self.waiting.append(latents)
        latents, need = Latents.cat(self.waiting), seanet.min_first_chunk_frames(self.codec.spec.seanet_config)
        if latents.z.shape[-1] < need:
            return self._audio(latents.z.new_zeros(len(latents), self.codec.spec.channels, 0), latents.lengths * 0)
        self.waiting = self.waiting[:0]
        wave = self.decoder(latents.z, self.carried)
        if need > 1 and bool((short := latents.lengths < need).any()):  # these mirror what they have themselves
            for row in short.nonzero()[:, 0].tolist():
                z = latents.z[[row], :, : int(latents.lengths[row])]
                wave[row, :, : z.shape[-1] * self.codec.spec.hop_length] = self.decoder(z)[0]
        return self._audio(wave, latents.lengths * self.codec.spec.hop_length)

    def flush(self) -> Audio:
        if self.waiting:
            audio = self.codec.decode(Latents.cat(self.waiting))
            return self._audio(audio.wave, audio.lengths)
        return self._audio(torch.zeros(self.clips, self.codec.spec.channels, 0, device=self.codec.device))

    def _audio(self, wave: Tensor, lengths: Tensor | None = None) -> Audio:
        rate = self.codec.spec.sample_rate
        wave = wave if self.gain is None else (wave * self.gain[..., None]).to(wave.dtype)
        return Audio(wave, rate) if lengths is None else Audio(wave, rate, lengths)


class LookaheadDecoder(StreamingDecoder):
    """Decodes frames as soon as `stream` has those that their samples depend on."""

    def __init__(self, codec: Encodec, stream: BatchStream) -> None:
        self.codec, self.stream = codec, stream
        self.clips = self.frames = 0
        self.gain: Tensor | None = None  # of the clips; a stream in chunks has its own of each chunk

    @torch.no_grad()
    def push(self, frames: Codes | Latents) -> Audio:
        frames = frames.to(self.codec.device)
        latents = self.codec.dequantize(frames)
        self.clips, self.frames = len(frames), self.frames + latents.shape[-1]
        if isinstance(self.stream, ChunkedStream):
            self.stream.gain = _gain(frames, -(-self.frames // self.stream.frames))
        else:
            self.gain = _gain(frames, 1)
        return self._audio(self.stream.push(latents, frames.lengths.tolist()))

    @torch.no_grad()
    def flush(self) -> Audio:
        return self._audio(self.stream.flush())

    def _audio(self, waves: dict[int, Tensor]) -> Audio:
        lengths = [waves[clip].shape[-1] if clip in waves else 0 for clip in range(self.clips)]
        size = (self.clips, self.codec.spec.channels, max(lengths, default=0))
        together = torch.zeros(size, dtype=self.codec.quantizer.dtype, device=self.codec.device)
        for clip, wave in waves.items():
            together[clip, :, : wave.shape[-1]] = wave if self.gain is None else wave * self.gain[clip]
        return Audio(together, self.codec.spec.sample_rate, torch.tensor(lengths, dtype=torch.long, device=self.codec.device))


_LATER = ("normalize", "chunk_seconds", "chunk_overlap", "bandwidths")  # fields of the spec that earlier releases lack


def _gain(frames: Codes | Latents, chunks: int) -> Float[Tensor, "b s"] | None:
    """The loudness of each chunk, where the codes carry it; RequestError where they carry it for too few."""
    if isinstance(frames, Latents) or frames.scale is None:
        return None
    gain = frames.scale.reshape(len(frames.scale), -1)
    if gain.shape[-1] < chunks:
        raise RequestError(f"codes: scale holds {gain.shape[-1]} of {chunks} chunks; decode whole clips as they were encoded")
    return gain[:, :chunks]


def _grouped(kinds: Sequence[Kind], device: torch.device) -> Iterator[tuple[Kind, Int[Tensor, " n"]]]:
    """Each kind of clip that occurs, with its rows: clips of several lengths are not padded, as padding would be convolved."""
    rows: dict[Kind, list[int]] = defaultdict(list)
    for row, kind in enumerate(kinds):
        rows[kind].append(row)
    for kind, which in rows.items():
        yield kind, torch.tensor(which, device=device)
