"""Stable Audio's autoencoder of continuous latents, Oobleck (Evans et al. 2024, arXiv:2404.10301)."""

import math
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from cadenza.codecs.base import Codec, CodecSpec, Positive, group_rows
from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.dsp.audio import Audio
from cadenza.nn import oobleck


class OobleckStages(Spec):
    """Strides from the sample rate to the frame rate; channels after each are `filters` times the next of `multiples`."""

    strides: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(2, 4, 4, 8, 8), min_length=1)
    filters: Positive = 128
    multiples: tuple[Positive, ...] = (1, 2, 4, 8, 16)
    snake: bool = True  # or ELU

    @model_validator(mode="after")
    def _even(self) -> Self:
        if len(self.multiples) != len(self.strides):
            raise ValueError(f"multiples must have as many entries as strides ({len(self.strides)}), got {len(self.multiples)}")
        return self

    @property
    def widths(self) -> list[int]:
        """Channels before the first stride and after each."""
        return [self.filters * multiple for multiple in (1, *self.multiples)]


class OobleckSpec(CodecSpec):
    """Spec of the Oobleck autoencoder; the defaults are those of Stable Audio Open.

    A frame is `latent` values divided by `scale`: the mean of the VAE bottleneck, or the encoder's output. `decoder` is
    given if its stages differ from the encoder's.
    """

    type: Literal["oobleck_vae"] = "oobleck_vae"
    channels: int = Field(default=2, ge=1)
    latent: Positive = 64
    encoder: OobleckStages = OobleckStages()
    decoder: OobleckStages | None = None
    bottleneck: Literal["vae", "none"] = "vae"
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    upsample: Literal["transposed", "nearest"] = "transposed"
    tanh: bool = False  # final activation

    @model_validator(mode="after")
    def _same_hop(self) -> Self:
        if self.decoder is not None and (hop := math.prod(self.decoder.strides)) != self.hop_length:
            raise ValueError(f"the strides of the decoder make {hop} samples a frame, those of the encoder {self.hop_length}")
        return self

    @property
    def hop_length(self) -> int:
        return math.prod(self.encoder.strides)

    @property
    def frame_format(self) -> FrameFormat:
        return FrameFormat("latents", self.sample_rate / self.hop_length, channels=self.latent)

    def decode_memory_bytes(self, frames: int, *, clips: int, itemsize: int) -> int:
        stages = self.decoder or self.encoder
        widest = max(width * math.prod(stages.strides[level:]) for level, width in enumerate(stages.widths))
        return 5 * clips * frames * widest * itemsize  # the residual input, and two layers with their activations

    @classmethod
    def example(cls) -> "OobleckSpec":
        return cls(sample_rate=8000, latent=4, encoder=OobleckStages(strides=(2, 4), filters=4, multiples=(1, 2)))

    def build(self) -> "Oobleck":
        return Oobleck(self)


class Oobleck(Codec):
    """Oobleck autoencoder; clips are zero-padded to whole frames and decoded audio is cut to their samples."""

    spec: OobleckSpec

    def __init__(self, spec: OobleckSpec) -> None:
        super().__init__(spec)
        up, down = spec.decoder or spec.encoder, spec.encoder
        out = 2 * spec.latent if spec.bottleneck == "vae" else spec.latent
        self.encoder = oobleck.Encoder(down.strides, down.widths, snake=down.snake, channels=spec.channels, out=out)
        options = {"snake": up.snake, "nearest": spec.upsample == "nearest", "tanh": spec.tanh}
        self.decoder = oobleck.Decoder(up.strides, up.widths, channels=spec.channels, latent=spec.latent, **options)

    def encode_distribution(self, wave: Float[Tensor, "b c t"]) -> tuple[Float[Tensor, "b d f"], Float[Tensor, "b d f"]]:
        """Return mean and standard deviation of the latents of a wave, before `scale`; 0 without a bottleneck."""
        x = self.encoder(wave)
        if self.spec.bottleneck == "none":
            return x, torch.zeros_like(x)
        mean, raw_std = x.chunk(2, 1)
        return mean, F.softplus(raw_std) + 1e-4

    @torch.no_grad()
    def encode(self, audio: Audio, *, num_codebooks: int | None = None) -> Latents:
        self.check_audio(audio)
        if num_codebooks is not None:
            raise RequestError("codec: latents have no codebooks; leave num_codebooks out")
        audio, lengths = audio.to(self.device), audio.lengths.tolist()
        frames = [self.spec.num_frames(length) for length in lengths]
        z = next(self.parameters()).new_zeros(len(audio), self.spec.latent, max(frames))
        for length, rows in group_rows(lengths, self.device):
            wave = F.pad(audio.wave[rows, :, :length].to(z.dtype), (0, -length % self.spec.hop_length))
            z[rows, :, : self.spec.num_frames(length)] = (self.encode_distribution(wave)[0] / self.spec.scale).to(z.dtype)
        return Latents(z, torch.tensor(frames, device=self.device), samples=audio.lengths)

    @torch.no_grad()
    def decode(self, frames: Codes | Latents) -> Audio:
        if not isinstance(frames, Latents):
            raise RequestError("codec: expected latents, got codes; decode them with the codec that encoded them")
        frames, hop = frames.to(self.device), self.spec.hop_length
        z = (frames.z * self.spec.scale).to(next(self.parameters()).dtype)
        lengths = frames.lengths.tolist()
        waves = z.new_zeros(len(z), self.spec.channels, max(lengths) * hop)
        for count, rows in group_rows(lengths, self.device):
            if count:
                wave = self.decoder(z[rows, :, :count])[..., : count * hop]
                waves[rows, :, : wave.shape[-1]] = wave.to(waves.dtype)
        samples = frames.lengths * hop if frames.samples is None else torch.minimum(frames.samples, frames.lengths * hop)
        return Audio(waves[..., : int(samples.max())], self.spec.sample_rate, samples)
