"""EnCodec: a SEANet autoencoder with residual vector quantisation (Défossez et al. 2022)."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from cadenza.codecs.base import Codec, CodecSpec, Decoder, Reconstruction, WholeDecoder
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, Grid, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn import seanet
from cadenza.nn.conv import Carried, ConvStyle, Norm, PadMode
from cadenza.nn.quantize import ResidualQuantizer

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class EncodecSpec(CodecSpec):
    """`strides` are those of the decoder, outermost last.

    Channels are `filters` at the sample rate and double at each stride unless `widths` lists them, from the sample
    rate to the frame rate; `residual_layers` may likewise be listed, for all rates but the last.
    """

    type: Literal["encodec"] = "encodec"
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

    @model_validator(mode="after")
    def _fits(self) -> "EncodecSpec":
        if self.causal and self.norm == "time_group_norm":
            raise ValueError("norm 'time_group_norm' looks at the whole clip; set causal to false, or norm to 'weight_norm'")
        levels = len(self.strides)
        if self.widths is not None and len(self.widths) != levels + 1:
            raise ValueError(f"widths must have one more entry than strides ({levels + 1}), got {len(self.widths)}")
        if isinstance(self.residual_layers, tuple) and len(self.residual_layers) != levels:
            raise ValueError(
                f"residual_layers must have as many entries as strides ({levels}), got {len(self.residual_layers)}"
            )
        odd = [width for width in self.shape.widths[:-1] if width % self.compress]
        if odd:
            raise ValueError(f"widths {odd} are not multiples of compress ({self.compress}); change them, or filters")
        return self

    @property
    def grid(self) -> Grid:
        return Grid("codes", self.sample_rate / self.hop, rows=self.codebooks, cardinality=self.bins)

    @property
    def hop(self) -> int:
        return math.prod(self.strides)

    @property
    def shape(self) -> seanet.Seanet:
        """The shape of the encoder and the decoder."""
        layers = self.residual_layers
        return seanet.Seanet(
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
            style=ConvStyle(self.causal, self.norm, self.pad_mode, self.trim_right_ratio),
        )

    @classmethod
    def example(cls) -> "EncodecSpec":
        return cls(sample_rate=8000, strides=(4, 4, 2), codebooks=2, bins=16, filters=4, dimension=8)

    def build(self) -> "Encodec":
        return Encodec(self)


class Encodec(Codec):
    """Codes of residual codebooks over the frames of a convolutional autoencoder."""

    spec: EncodecSpec

    def __init__(self, spec: EncodecSpec) -> None:
        super().__init__(spec)
        self.analysis = seanet.Encoder(spec.shape)
        self.quantizer = ResidualQuantizer(spec.dimension, codebooks=spec.codebooks, bins=spec.bins)
        self.synthesis = seanet.Decoder(spec.shape)

    @torch.no_grad()
    def encode(self, audio: Audio) -> Codes:
        self._check(audio)
        audio = audio.to(self.device)
        frames = -(-audio.lengths // self.spec.hop)
        ids = audio.wave.new_zeros(len(audio), self.spec.codebooks, int(frames.max()), dtype=torch.long)
        for length, rows in _by_length(audio.lengths):
            wave = audio.wave[rows, :, :length].to(self.quantizer.dtype)
            codes = self.quantizer.encode(self.analysis(wave))
            ids[rows, :, : codes.shape[-1]] = codes
        return Codes(ids, frames, samples=audio.lengths)

    @torch.no_grad()
    def decode(self, frames: Codes | Latents) -> Audio:
        """Audio of codes or of latents before quantisation."""
        frames = frames.to(self.device)
        latents = self.latents(frames)
        wave = latents.new_zeros(len(latents), self.spec.channels, latents.shape[-1] * self.spec.hop)
        for length, rows in _by_length(frames.lengths):
            decoded = self.synthesis(latents[rows, :, :length])
            wave[rows, :, : decoded.shape[-1]] = decoded.to(wave.dtype)  # under autocast it is another
        samples = frames.lengths * self.spec.hop if frames.samples is None else frames.samples
        return Audio(wave[..., : int(samples.max())], self.spec.sample_rate, samples)

    def decoder(self) -> Decoder:
        """A stream that returns the samples of each frame at once where the codec is causal, and all at the end where not."""
        if self.spec.causal and self.spec.trim_right_ratio == 1.0:
            return CausalDecoder(self)
        return WholeDecoder(self)

    def reconstruct(
        self, wave: Float[Tensor, "b c t"], *, levels: int | None = None, rng: torch.Generator | None = None
    ) -> Reconstruction:
        latents = self.analysis(wave)
        if levels == 0:
            decoded = self.synthesis(latents)
            return Reconstruction(decoded[..., : wave.shape[-1]], Latents(latents), {})
        quantized = self.quantizer(latents, levels=levels, rng=rng)
        decoded = self.synthesis(quantized.latents.to(latents.dtype))
        losses = {"commitment": quantized.commitment}
        return Reconstruction(decoded[..., : wave.shape[-1]], Codes(quantized.codes), losses)

    def freeze_encoder(self) -> None:
        self.analysis.requires_grad_(False)

    @property
    def latent_width(self) -> int:
        return self.spec.dimension

    def fit_codebooks(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        self.quantizer.fit(latents, rng)

    def latents(self, frames: Codes | Latents) -> Float[Tensor, "b d f"]:
        """What the synthesis network is given for these frames."""
        return frames.z if isinstance(frames, Latents) else self.quantizer.decode(frames.ids)

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


class CausalDecoder(Decoder):
    """Decodes each chunk with what the layers carry over from the one before."""

    def __init__(self, codec: Encodec) -> None:
        self.codec = codec
        self.carried: Carried = {}
        self.waiting: list[Latents] = []  # frames before there are enough to start with
        self.clips = 0

    @torch.no_grad()
    def push(self, frames: Codes | Latents) -> Audio:
        frames = frames.to(self.codec.device)
        latents = Latents(self.codec.latents(frames), frames.lengths)
        self.clips = len(latents)
        if not self.carried:
            self.waiting.append(latents)
            latents = Latents.join(self.waiting)
            if latents.z.shape[-1] < seanet.first_chunk(self.codec.spec.shape):
                return self._audio(latents.z.new_zeros(len(latents), self.codec.spec.channels, 0), latents.lengths * 0)
            self.waiting = self.waiting[:0]
        return self._audio(self.codec.synthesis(latents.z, self.carried), latents.lengths * self.codec.spec.hop)

    def finish(self) -> Audio:
        if self.waiting:
            return self.codec.decode(Latents.join(self.waiting))
        return self._audio(torch.zeros(self.clips, self.codec.spec.channels, 0, device=self.codec.device))

    def _audio(self, wave: Tensor, lengths: Tensor | None = None) -> Audio:
        rate = self.codec.spec.sample_rate
        return Audio(wave, rate) if lengths is None else Audio(wave, rate, lengths)


def _by_length(lengths: Int[Tensor, " b"]) -> Iterator[tuple[int, Tensor]]:
    """Each length that occurs, with the rows that have it: what is padded must not be convolved."""
    for length in lengths.unique().tolist():
        if length > 0:
            yield length, (lengths == length).nonzero()[:, 0]
