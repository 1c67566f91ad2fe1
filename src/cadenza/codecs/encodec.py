"""EnCodec: a SEANet autoencoder with residual vector quantisation (Défossez et al. 2022)."""

import math
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_serializer, model_validator
from torch import Tensor

from cadenza.codecs.base import BufferingDecoder, Codec, CodecSpec, CodecTrainOutput, Positive, StreamingDecoder, group_rows
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn import seanet
from cadenza.nn.conv import ConvConfig, Norm, PadMode, StreamState, without_weight_norm
from cadenza.nn.streaming import BatchStream, ChunkedStream, ChunkLayout, LookaheadStream, overlap_add
from cadenza.nn.vector_quantize import ResidualVectorQuantizer

CHUNK_FRAMES = 64  # frames that a CPU decodes at once
_ADDED_FIELDS = ("normalize", "chunk_seconds", "chunk_overlap", "bandwidths")  # not in specs of earlier releases
Count = Annotated[int, Field(ge=0)]


class EncodecSpec(CodecSpec):
    """Spec of EnCodec. `strides` are those of the decoder, outermost last; the hop length is their product.

    Channels are `filters` at the sample rate and double at each stride, unless `widths` lists them from the sample rate to
    the frame rate; `residual_layers` may be listed too, for all rates but the last. `chunk_seconds` encodes a clip in chunks
    that overlap by the share `chunk_overlap`; `normalize` divides each chunk, or the whole clip, by its RMS and stores it as
    `scale`. `bandwidths` are the trained kbit/s, the last with all codebooks.
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
        """Omit added fields at their defaults, so that earlier saved specs are equal as data."""
        unused = {name for name in _ADDED_FIELDS if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unused}

    @model_validator(mode="after")
    def _fits(self) -> "EncodecSpec":
        levels, layers = len(self.strides), self.residual_layers
        if self.widths is not None and len(self.widths) != levels + 1:
            raise ValueError(f"widths must have one more entry than strides ({levels + 1}), got {len(self.widths)}")
        if isinstance(layers, tuple) and len(layers) != levels:
            raise ValueError(f"residual_layers must have as many entries as strides ({levels}), got {len(layers)}")
        if thin := [width for width in self.seanet_config.widths[:-1] if width < self.compress]:
            raise ValueError(f"widths {thin} are below compress ({self.compress}); change them, or filters")
        if not self.causal and self.trim_right_ratio != 1.0:
            raise ValueError(f"trim_right_ratio {self.trim_right_ratio:g} is for causal codecs; set it to 1, or causal to true")
        if self.chunk_overlap and self.chunk_seconds is None:
            raise ValueError("chunk_overlap has no effect without chunk_seconds; give both or none")
        if self.chunk_seconds is not None and self.chunk_seconds * self.sample_rate < 1:
            raise ValueError(f"chunk_seconds {self.chunk_seconds:g} is less than one sample; give more")
        if self.bandwidths and (full := self.num_codebooks_for_bandwidth(self.bandwidths[-1])) != self.codebooks:
            raise ValueError(f"the last of bandwidths fits {full} codebooks instead of {self.codebooks}; change one of them")
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
        """Length and stride of chunks in samples; None without chunks."""
        if self.chunk_seconds is None:
            return None
        length = int(self.chunk_seconds * self.sample_rate)
        return ChunkLayout(length, max(1, int((1.0 - self.chunk_overlap) * length)))

    def chunk_spans(self, samples: int) -> list[tuple[int, int]]:
        """Return (start, stop) samples of each chunk of a clip."""
        return [(0, samples)] if self.chunk_layout is None else self.chunk_layout.spans(samples)

    def num_frames(self, samples: int) -> int:
        return sum(self._frames_each(samples))

    def num_codebooks_for_bandwidth(self, bandwidth: float) -> int:
        """Return the number of codebooks of a trained bandwidth in kbit/s; raise RequestError for other ones."""
        if not self.bandwidths:
            return super().num_codebooks_for_bandwidth(bandwidth)
        if bandwidth not in self.bandwidths:
            known = ", ".join(f"{known:g}" for known in self.bandwidths)
            raise RequestError(f"codec: {bandwidth:g} kbit/s is not a bandwidth of this model; choose from {known}")
        per_codebook = math.log2(self.bins) * math.ceil(self.sample_rate / self.hop_length)  # as in transformers
        return max(1, min(self.codebooks, math.floor(bandwidth * 1000 / per_codebook)))

    def frames_per_chunk(self, frames: int, samples: int | None) -> tuple[int, ...]:
        """Return the frames of each chunk of a clip of `samples` samples; if None, all chunks but the last are full."""
        if self.chunk_layout is None:
            return (frames,)
        if samples is not None and sum(chunks := self._frames_each(samples)) == frames:
            return chunks
        whole = -(-self.chunk_layout.length // self.hop_length)
        return tuple(min(whole, frames - start) for start in range(0, frames, whole))

    def _frames_each(self, samples: int) -> tuple[int, ...]:
        return tuple(-(-(stop - start) // self.hop_length) for start, stop in self.chunk_spans(samples))

    @property
    def seanet_config(self) -> seanet.SeanetConfig:
        """Shape of the encoder and decoder networks."""
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
        return CHUNK_FRAMES if self.supports_streaming and device == "cpu" and frames > 2 * CHUNK_FRAMES else frames

    def decode_memory_bytes(self, frames: int, *, clips: int, itemsize: int) -> int:
        return clips * frames * seanet.peak_activations_per_frame(self.seanet_config) * itemsize

    @classmethod
    def example(cls) -> "EncodecSpec":
        return cls(sample_rate=8000, strides=(4, 4, 2), codebooks=2, bins=16, filters=4, dimension=8)

    def build(self) -> "Encodec":
        return Encodec(self)


class Encodec(Codec):
    """EnCodec: `encoder`, residual vector `quantizer`, `decoder` (arXiv:2210.13438).

    The frames of all chunks are concatenated, more than samples / hop length; those of the last two chunks follow from
    `samples`, and if it is unknown, every chunk but the last is full. `scale` [b s] is the RMS of each chunk, or of the clip
    with s = 1; codes without it decode at RMS 1.
    """

    spec: EncodecSpec

    def __init__(self, spec: EncodecSpec) -> None:
        super().__init__(spec)
        self.encoder = seanet.Encoder(spec.seanet_config)
        self.quantizer = ResidualVectorQuantizer(spec.dimension, codebooks=spec.codebooks, bins=spec.bins)
        self.decoder = seanet.Decoder(spec.seanet_config)

    @torch.no_grad()
    def encode(self, audio: Audio, *, num_codebooks: int | None = None) -> Codes:
        self.check_audio(audio)
        num_codebooks = self.spec.codebooks if num_codebooks is None else num_codebooks
        if not 1 <= num_codebooks <= self.spec.codebooks:
            raise RequestError(f"codec: cannot use {num_codebooks} codebooks; give 1 to {self.spec.codebooks}")
        audio, lengths = audio.to(self.device), audio.lengths.tolist()
        frames = torch.tensor([self.spec.num_frames(length) for length in lengths], device=self.device)
        ids = audio.wave.new_zeros(len(audio), num_codebooks, int(frames.max()), dtype=torch.long)
        max_chunks = max(len(self.spec.chunk_spans(length)) for length in lengths)
        scale = audio.wave.new_ones(len(audio), max_chunks, dtype=torch.float32) if self.spec.normalize else None
        for length, rows in group_rows(lengths, self.device):
            start = 0
            for number, (first, last) in enumerate(self.spec.chunk_spans(length)):
                wave, loudness = self._normalize(audio.wave[rows, :, first:last].to(self.quantizer.dtype))
                codes = self.quantizer.encode(self.encoder(wave), num_codebooks=num_codebooks)
                ids[rows, :, start : start + codes.shape[-1]] = codes
                start += codes.shape[-1]
                if scale is not None and loudness is not None:
                    scale[rows, number] = loudness[:, 0, 0]
        return Codes(ids, frames, samples=audio.lengths, scale=scale)

    @torch.no_grad()
    def decode(self, frames: Codes | Latents) -> Audio:
        """Decode codes, or latents before quantization; a CPU decodes long clips in chunks, in half the time."""
        frames = frames.to(self.device)
        longest = int(frames.lengths.max())
        if (chunk := self.spec.decode_chunk_frames(longest, self.device.type)) < longest:
            return self.decode_chunked(frames, chunk)
        latents = self.embed(frames)
        samples_each = [None] * len(latents) if frames.samples is None else frames.samples.tolist()
        layouts = [self.spec.frames_per_chunk(*size) for size in zip(frames.lengths.tolist(), samples_each, strict=True)]
        gain = _gain(frames, max(map(len, layouts)))
        stride, hop = self.spec.chunk_layout.stride if self.spec.chunk_layout else 0, self.spec.hop_length
        sizes = [max((i * stride + count * hop for i, count in enumerate(layout)), default=0) for layout in layouts]
        waves = latents.new_zeros(len(latents), self.spec.channels, max(sizes))
        for layout, rows in group_rows(layouts, self.device):
            chunks = latents[rows, :, : sum(layout)].split(layout, -1)
            parts = [self.decoder(chunk) for chunk in chunks if chunk.shape[-1]]
            if gain is not None:
                parts = [part * gain[rows, i, None, None] for i, part in enumerate(parts)]
            if parts:
                wave = overlap_add(parts, stride) if stride else parts[0]
                waves[rows, :, : wave.shape[-1]] = wave.to(waves.dtype)  # autocast changes the dtype
        samples = torch.tensor(sizes, device=self.device)
        if frames.samples is not None:
            samples = torch.minimum(frames.samples, samples)
        return Audio(waves[..., : int(samples.max())], self.spec.sample_rate, samples)

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a stream: a causal codec returns each frame's samples at once, others a few frames later.

        A codec with chunks returns chunk by chunk; with `time_group_norm` all samples come at `flush`.
        """
        spec, decoder = self.spec, without_weight_norm(self.decoder)
        if (layout := spec.chunk_layout) is not None:
            frames = -(-layout.length // spec.hop_length)
            return LookaheadDecoder(self, ChunkedStream(decoder, frames=frames, stride=layout.stride))
        if spec.norm == "time_group_norm":
            return super().streaming_decoder()
        if spec.causal and spec.trim_right_ratio == 1.0:
            return CausalDecoder(self, decoder)
        return LookaheadDecoder(self, LookaheadStream(decoder, spec.seanet_config))

    def forward_train(
        self, wave: Float[Tensor, "b c t"], *, num_codebooks: int | None = None, rng: torch.Generator | None = None
    ) -> CodecTrainOutput:
        """Run a differentiable pass over the wave as one chunk."""
        normalized, loudness = self._normalize(wave)
        latents = self.encoder(normalized)
        frames: Codes | Latents = Latents(latents)
        losses = {}
        if num_codebooks != 0:
            quantized = self.quantizer(latents, num_codebooks=num_codebooks, rng=rng)
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
        """Return the decoder's input for these frames: latents unchanged, codes summed over codebooks."""
        frames = frames.to(self.device)
        return frames.z if isinstance(frames, Latents) else self.quantizer.decode(frames.ids)

    def init_codebooks(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        self.quantizer.kmeans_init(latents, rng)

    def _normalize(self, wave: Float[Tensor, "b c t"]) -> tuple[Float[Tensor, "b c t"], Float[Tensor, "b 1 1"] | None]:
        """Return the encoder's input and the RMS [b 1 1] that it was divided by, or None."""
        if not self.spec.normalize:
            return wave, None
        loudness = wave.float().mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8
        return (wave / loudness).to(wave.dtype), loudness


class CausalDecoder(BufferingDecoder):
    """Streaming decoder of causal codecs: layers carry state from chunk to chunk, once a first chunk is long enough."""

    def __init__(self, codec: Encodec, decoder: seanet.Decoder) -> None:
        super().__init__(codec)
        self.decoder = decoder
        self.state: StreamState = {}

    @torch.no_grad()
    def push(self, frames: Codes | Latents) -> Audio:
        frames, spec, need = frames.to(self.codec.device), self.codec.spec, 0
        if not self.state:
            empty, need = super().push(frames), seanet.min_first_chunk_frames(spec.seanet_config)
            frames = type(frames).cat(self.buffered)
            if frames.data.shape[-1] < need:
                return empty
            self.buffered = []
        z = self.codec.embed(frames)
        wave = self.decoder(z, self.state)
        if need > 1:  # short clips reflect their own samples
            for row in (frames.lengths < need).nonzero()[:, 0].tolist():
                length = int(frames.lengths[row])
                wave[row, :, : length * spec.hop_length] = self.decoder(z[[row], :, :length])[0]
        if (gain := _gain(frames, 1)) is not None:
            wave = (wave * gain[..., None]).to(wave.dtype)
        return Audio(wave, spec.sample_rate, frames.lengths * spec.hop_length)


class LookaheadDecoder(StreamingDecoder):
    """Streaming decoder that returns samples once `stream` has all frames that they depend on."""

    def __init__(self, codec: Encodec, stream: BatchStream) -> None:
        self.codec, self.stream = codec, stream
        self.clips = self.frames = 0
        self.gain: Tensor | None = None  # of the clips; a chunked stream stores one for each chunk

    @torch.no_grad()
    def push(self, frames: Codes | Latents) -> Audio:
        frames = frames.to(self.codec.device)
        latents = self.codec.embed(frames)
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
        batch = torch.zeros(size, dtype=self.codec.quantizer.dtype, device=self.codec.device)
        for clip, wave in waves.items():
            batch[clip, :, : wave.shape[-1]] = wave if self.gain is None else wave * self.gain[clip]
        return Audio(batch, self.codec.spec.sample_rate, torch.tensor(lengths, dtype=torch.long, device=self.codec.device))


def _gain(frames: Codes | Latents, chunks: int) -> Float[Tensor, "b s"] | None:
    """Return the RMS of each chunk if the codes have it; raise RequestError if they have too few."""
    if isinstance(frames, Latents) or frames.scale is None:
        return None
    gain = frames.scale.reshape(len(frames.scale), -1)
    if gain.shape[-1] < chunks:
        raise RequestError(f"codes: scale holds {gain.shape[-1]} of {chunks} chunks; decode whole clips as they were encoded")
    return gain[:, :chunks]
