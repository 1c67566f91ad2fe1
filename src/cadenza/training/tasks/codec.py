"""Training a codec: reconstruct, under a critic if wished (Défossez et al. 2022, section 3.4)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import Codec, CodecTrainOutput
from cadenza.core.types import Codes, Latents
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectral import si_sdr
from cadenza.nn.discriminators import MultiScaleSTFTDiscriminator
from cadenza.training.losses import (
    Adversarial,
    Balancer,
    LogMelLoss,
    MultiScaleMelLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    multi_resolution_stft_loss,
)
from cadenza.training.tasks.base import StepContext, Task, TaskSpec, Yield

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]


class CodecTaskSpec(TaskSpec):
    """Weights are shares of the gradient at the output; `critic_start` is the step at which the critic comes in.

    To `train` the decoder only leaves the codes of every clip as they are.
    """

    type: Literal["codec"] = "codec"
    train: Literal["all", "decoder"] = "all"
    unquantized_steps: Count = 2000  # unquantised steps, after which k-means makes the codebooks; 0 keeps those there are
    kmeans_frames: Annotated[int, Field(gt=0)] = 16384  # latents that k-means sees
    quantizer_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of steps that use a random number of codebooks
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
    discriminator_filters: Annotated[int, Field(gt=0)] = 32

    @model_validator(mode="after")
    def _fits(self) -> "CodecTaskSpec":
        if self.train == "decoder" and self.unquantized_steps:
            raise ValueError(
                f"unquantized_steps ({self.unquantized_steps}) would make new codebooks; to train the decoder only, set it to 0"
            )
        return self

    def build(self, system: Any) -> "CodecTask":
        return CodecTask(self, system.codec)


class LatentPool(nn.Module):
    """The latest `size` latents that were shown to it."""

    latents: Tensor
    seen: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("latents", torch.zeros(size, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def add(self, latents: Float[Tensor, "n d"]) -> None:
        size = len(self.latents)
        latents = latents[-size:]
        places = (self.seen + torch.arange(len(latents), device=latents.device)) % size
        self.latents[places] = latents
        self.seen += len(latents)

    def filled(self) -> Float[Tensor, "n d"]:
        return self.latents[: int(self.seen)]


class CodecTask(Task):
    """A batch is a mapping whose `audio` is an `Audio`; what pads its clips is learned as silence."""

    selection_metric: ClassVar[str] = "log_mel_l1"

    def __init__(self, spec: CodecTaskSpec, codec: Codec) -> None:
        self.spec = spec
        self.codec = codec
        if spec.train == "decoder":
            codec.freeze_encoder()
        self.critic = (
            MultiScaleSTFTDiscriminator(codec.spec.channels, filters=spec.discriminator_filters) if self._adversarial else None
        )
        names = ("l1", "mel", "stft", "adversarial", "feature")
        self.balancer = Balancer({name: getattr(spec, name) for name in names})
        self.mel = MultiScaleMelLoss(codec.spec.sample_rate, windows=spec.mel_windows)
        self.distance = LogMelLoss(codec.spec.sample_rate)
        self.pool = LatentPool(spec.kmeans_frames, codec.latent_dim)
        self._state = nn.ModuleDict({"balancer": self.balancer, "pool": self.pool, "mel": self.mel, "distance": self.distance})
        self._state.register_buffer("quantizing", torch.tensor(spec.unquantized_steps == 0))
        self._counts: Tensor | None = None  # how often each code was used since the last report

    @property
    def _adversarial(self) -> bool:
        return self.spec.adversarial > 0 or self.spec.feature > 0

    def optimized_modules(self) -> dict[str, nn.Module]:
        groups: dict[str, nn.Module] = {"codec": self.codec}
        return groups if self.critic is None else groups | {"critic": self.critic}

    def extra_state(self) -> nn.Module:
        return self._state

    def step(self, batch: Mapping[str, Any], progress: StepContext) -> Iterator[Yield]:
        wave = batch["audio"].wave
        if progress.step >= self.spec.unquantized_steps and not self._quantizing:
            self.codec.init_codebooks(self.pool.filled(), progress.rng)
            self._state.get_buffer("quantizing").fill_(True)
        rng = progress.rng if self.spec.train == "all" else None  # without, codebooks do not learn
        made = self.codec.forward_train(wave, num_codebooks=self._levels(progress), rng=rng)
        if isinstance(made.frames, Latents):
            self.pool.add(rearrange(made.frames.z.detach().float(), "b d f -> (b f) d"))
        critic = self.critic if progress.step >= self.spec.discriminator_start_step else None
        if critic is not None:
            yield "critic", self._judge(critic, wave, made.wave.detach())
        yield "codec", self._improve(critic, wave, made)

    def _levels(self, progress: StepContext) -> int | None:
        """Codebooks of this step: none before k-means, a random number on some steps, or all."""
        if not self._quantizing:
            return 0
        draw = torch.Generator().manual_seed(progress.step)  # the same in every process: each level is a collective
        if float(torch.rand((), generator=draw)) < self.spec.quantizer_dropout:
            return int(torch.randint(1, self.codec.frame_format.channels + 1, (), generator=draw))
        return None

    def _judge(self, critic: MultiScaleSTFTDiscriminator, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        logits = [[opinion.logits for opinion in critic(wave)] for wave in (real, fake)]
        scales = discriminator_loss(*logits, kind=self.spec.gan_loss)
        return {"loss": scales.mean()} | {f"scale{i}": scale.detach() for i, scale in enumerate(scales)}

    def _improve(self, critic: MultiScaleSTFTDiscriminator | None, wave: Tensor, made: CodecTrainOutput) -> dict[str, Tensor]:
        output = made.wave.float()
        terms = {"l1": F.l1_loss(output, wave), "mel": self.mel(output, wave)}
        if self.spec.stft:
            terms["stft"] = multi_resolution_stft_loss(output, wave, resolutions=self.spec.stft_resolutions)
        if critic is not None:
            critic.requires_grad_(False)  # its own gradients come from its own yield
            fake = critic(output)
            with torch.no_grad():
                real = critic(wave)
            critic.requires_grad_(True)
            terms["adversarial"] = generator_loss([opinion.logits for opinion in fake], self.spec.gan_loss)
            terms["feature"] = feature_matching_loss([o.features for o in real], [o.features for o in fake])
        balanced = self.balancer(terms, output)
        loss = balanced.loss + sum(self.spec.commitment * value for value in made.losses.values())
        logged = terms | made.losses | {f"share_{name}": share for name, share in balanced.shares.items()}
        logged |= {"si_sdr": si_sdr(output, wave).mean()}
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    @torch.no_grad()
    def validate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        wave = batch["audio"].wave
        made = self.codec.forward_train(wave, num_codebooks=None if self._quantizing else 0)
        if isinstance(made.frames, Codes):
            self._count(made.frames.ids)
        return {
            "si_sdr": si_sdr(made.wave, wave).mean(),
            "mel": self.mel(made.wave, wave),
            "log_mel_l1": self.distance(made.wave, wave),
        }

    def epoch_metrics(self) -> dict[str, Tensor]:
        """For each codebook, the share of entries used and the perplexity of their use."""
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
        made = self.codec.forward_train(audio.wave, num_codebooks=None if self._quantizing else 0)
        return {"original": audio, "reconstruction": Audio(made.wave, audio.sample_rate, audio.lengths)}

    @property
    def _quantizing(self) -> bool:
        return bool(self._state.get_buffer("quantizing"))

    def _count(self, ids: Int[Tensor, "b k f"]) -> None:
        flat = rearrange(ids, "b k f -> k (b f)")
        bins = self.codec.frame_format.cardinality
        counts = torch.stack([torch.bincount(row, minlength=bins) for row in flat]).double()
        self._counts = counts if self._counts is None else self._counts + counts
