"""Train a codec: reconstruction, optionally with a discriminator (Défossez et al. 2022, section 3.4)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import Codec, CodecTrainOutput
from cadenza.core.types import Codes, Latents
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectral import si_sdr
from cadenza.nn.discriminators import MultiScaleSTFTDiscriminator
from cadenza.training import losses
from cadenza.training.losses import Adversarial, Balancer, LogMelLoss, MultiScaleMelLoss
from cadenza.training.tasks.base import StepContext, Task, TaskSpec, Yield

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]


class CodecTaskSpec(TaskSpec):
    """Loss weights are shares of the gradient at the output; the discriminator is used from `discriminator_start_step`.

    With `train: decoder` the codes of every clip stay unchanged.
    """

    type: Literal["codec"] = "codec"
    train: Literal["all", "decoder"] = "all"
    unquantized_steps: Count = 2000  # then k-means initializes the codebooks; 0 = keep the present ones
    kmeans_frames: Size = 16384  # latents used by k-means
    quantizer_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability of a step with a random number of codebooks
    mel_windows: tuple[Size, ...] = (64, 128, 256, 512, 1024, 2048)
    stft_resolutions: tuple[tuple[Size, Size, Size], ...] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
    l1: Weight = 0.1
    mel: Weight = 2.0
    stft: Weight = 0.0
    adversarial: Weight = 0.0
    feature: Weight = 0.0
    commitment: Weight = 1.0
    gan_loss: Adversarial = "hinge"
    discriminator_start_step: Count = 0
    discriminator_filters: Size = 32

    @model_validator(mode="after")
    def _fits(self) -> "CodecTaskSpec":
        if self.train == "decoder" and self.unquantized_steps:
            raise ValueError(
                f"unquantized_steps ({self.unquantized_steps}) would replace the codebooks; set 0 to train the decoder"
            )
        return self

    def build(self, system: Any) -> "CodecTask":
        return CodecTask(self, system.codec)


class LatentPool(nn.Module):
    """Ring buffer of the latest `size` latents [d]."""

    latents: Tensor
    seen: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("latents", torch.zeros(size, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def add(self, latents: Float[Tensor, "n d"]) -> None:
        size = len(self.latents)
        latents = latents[-size:]
        indices = (self.seen + torch.arange(len(latents), device=latents.device)) % size
        self.latents[indices] = latents
        self.seen += len(latents)

    def filled(self) -> Float[Tensor, "n d"]:
        return self.latents[: int(self.seen)]


class CodecTask(Task):
    """Train a codec on batches with `audio`; padding is trained as silence."""

    selection_metric: ClassVar[str] = "log_mel_l1"

    def __init__(self, spec: CodecTaskSpec, codec: Codec) -> None:
        self.spec = spec
        self.codec = codec
        if spec.train == "decoder":
            codec.freeze_encoder()
        self.discriminator = None
        if spec.adversarial > 0 or spec.feature > 0:
            self.discriminator = MultiScaleSTFTDiscriminator(codec.spec.channels, filters=spec.discriminator_filters)
        names = ("l1", "mel", "stft", "adversarial", "feature")
        self.balancer = Balancer({name: getattr(spec, name) for name in names})
        self.mel = MultiScaleMelLoss(codec.spec.sample_rate, windows=spec.mel_windows)
        self.distance = LogMelLoss(codec.spec.sample_rate)
        self.pool = LatentPool(spec.kmeans_frames, codec.latent_dim)
        self._state = nn.ModuleDict({"balancer": self.balancer, "pool": self.pool, "mel": self.mel, "distance": self.distance})
        self._state.register_buffer("quantizing", torch.tensor(spec.unquantized_steps == 0))
        self._counts: Tensor | None = None  # uses of each code since the last `epoch_metrics`

    def optimized_modules(self) -> dict[str, nn.Module]:
        groups: dict[str, nn.Module] = {"codec": self.codec}
        return groups if self.discriminator is None else groups | {"discriminator": self.discriminator}

    def extra_state(self) -> nn.Module:
        return self._state

    def step(self, batch: Mapping[str, Any], progress: StepContext) -> Iterator[Yield]:
        wave = batch["audio"].wave
        if progress.step >= self.spec.unquantized_steps and not self._quantizing:
            self.codec.init_codebooks(self.pool.filled(), progress.rng)
            self._state.get_buffer("quantizing").fill_(True)
        rng = progress.rng if self.spec.train == "all" else None  # None: codebooks are not updated
        output = self.codec.forward_train(wave, num_codebooks=self._num_codebooks(progress), rng=rng)
        if isinstance(output.frames, Latents):
            self.pool.add(rearrange(output.frames.z.detach().float(), "b d f -> (b f) d"))
        discriminator = self.discriminator if progress.step >= self.spec.discriminator_start_step else None
        if discriminator is not None:
            logits = [[scale.logits for scale in discriminator(x)] for x in (wave, output.wave.detach())]
            scales = losses.discriminator_loss(*logits, kind=self.spec.gan_loss)
            yield "discriminator", {"loss": scales.mean()} | {f"scale{i}": x.detach() for i, x in enumerate(scales)}
        yield "codec", self._codec_losses(discriminator, wave, output)

    def _num_codebooks(self, progress: StepContext) -> int | None:
        """Return the codebooks of this step: 0 before k-means, a random number on some steps, or None for all."""
        if not self._quantizing:
            return 0
        draw = torch.Generator().manual_seed(progress.step)  # equal in every process: each codebook is a collective operation
        if float(torch.rand((), generator=draw)) < self.spec.quantizer_dropout:
            return int(torch.randint(1, self.codec.frame_format.channels + 1, (), generator=draw))
        return None

    def _codec_losses(
        self, discriminator: MultiScaleSTFTDiscriminator | None, wave: Tensor, output: CodecTrainOutput
    ) -> dict[str, Tensor]:
        fake = output.wave.float()
        terms = {"l1": F.l1_loss(fake, wave), "mel": self.mel(fake, wave)}
        if self.spec.stft:
            terms["stft"] = losses.multi_resolution_stft_loss(fake, wave, resolutions=self.spec.stft_resolutions)
        if discriminator is not None:
            discriminator.requires_grad_(False)  # its gradients come from its own losses
            fake_scales = discriminator(fake)
            with torch.no_grad():
                real_scales = discriminator(wave)
            discriminator.requires_grad_(True)
            terms["adversarial"] = losses.generator_loss([scale.logits for scale in fake_scales], self.spec.gan_loss)
            features = [[scale.features for scale in scales] for scales in (real_scales, fake_scales)]
            terms["feature"] = losses.feature_matching_loss(*features)
        balanced = self.balancer(terms, fake)
        loss = balanced.loss + sum(self.spec.commitment * value for value in output.losses.values())
        shares = {f"share_{name}": share for name, share in balanced.shares.items()}
        logged = {**terms, **output.losses, **shares, "si_sdr": si_sdr(fake, wave).mean()}
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    @torch.no_grad()
    def validate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        wave = batch["audio"].wave
        output = self.codec.forward_train(wave, num_codebooks=None if self._quantizing else 0)
        if isinstance(output.frames, Codes):
            rows = rearrange(output.frames.ids, "b k f -> k (b f)")
            cardinality = self.codec.frame_format.cardinality
            counts = torch.stack([torch.bincount(row, minlength=cardinality) for row in rows]).double()
            self._counts = counts if self._counts is None else self._counts + counts
        return {
            "si_sdr": si_sdr(output.wave, wave).mean(),
            "mel": self.mel(output.wave, wave),
            "log_mel_l1": self.distance(output.wave, wave),
        }

    def epoch_metrics(self) -> dict[str, Tensor]:
        """Return, for each codebook, the share of entries used and the perplexity of their use."""
        if self._counts is None:
            return {}
        shares = self._counts / self._counts.sum(-1, keepdim=True)
        perplexity = torch.special.entr(shares).sum(-1).exp()
        used = (self._counts > 0).double().mean(-1)
        self._counts = None
        report = {f"codebook{k}/used": value for k, value in enumerate(used)}
        return report | {f"codebook{k}/perplexity": value for k, value in enumerate(perplexity)}

    @torch.no_grad()
    def sample_audio(self, batch: Mapping[str, Any]) -> dict[str, Audio]:
        audio: Audio = batch["audio"]
        output = self.codec.forward_train(audio.wave, num_codebooks=None if self._quantizing else 0)
        return {"original": audio, "reconstruction": Audio(output.wave, audio.sample_rate, audio.lengths)}

    @property
    def _quantizing(self) -> bool:
        return bool(self._state.get_buffer("quantizing"))
