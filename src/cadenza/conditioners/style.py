"""How an excerpt of a recording sounds, in a few vectors: the style of MusicGen-Style (arXiv:2407.12563)."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import Conditioner, ConditionerSpec, Item, PreparedInputs
from cadenza.core.errors import RequestError
from cadenza.core.types import Condition, ConditionKind, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.nn.hubert import HubertEncoder
from cadenza.nn.rope import sinusoidal_embedding
from cadenza.nn.transformer import Block
from cadenza.nn.vector_quantize import VariableRVQ

_LEAST = 0.1  # seconds: a shorter sound is followed by silence, so that there is a frame of it
_KEYS = ("audio", "start", "seconds", "levels")


class StyleSpec(ConditionerSpec):
    """An excerpt of `seconds` as frames of `model`, a MERT or its kin by folder or repository, or as tokens of `codec`.

    These go through a transformer of `depth` blocks and a bottleneck of `levels` codebooks, of which generation uses
    `eval_q`: fewer say less. Of what comes out every `downsample`-th vector is kept. In training the excerpt lasts between the two
    of `train_seconds_range` seconds, at a place that is drawn. A `codec` is saved with the weights; before training begins it takes its
    own from `model`, a saved system.
    """

    type: Literal["style"] = "style"
    widget: ClassVar[str] = "audio"
    model: str | None = None
    revision: str | None = None  # of a repository
    codec: CodecSpec | None = None
    sample_rate: int = Field(default=24000, gt=0)  # of what `model` hears; a codec has its own
    normalize: bool = False  # each excerpt to mean 0 and deviation 1, for a `model` that was trained so
    dim: int | None = Field(default=None, ge=1)  # of the frames of `model`; looked up in its config where not given
    hidden: int = Field(default=512, ge=4)
    depth: int = Field(default=8, ge=0)
    heads: int = Field(default=8, ge=1)
    levels: int = Field(default=6, ge=1)
    bins: int = Field(default=1024, ge=2)
    eval_q: int = Field(default=3, ge=1)
    downsample: int = Field(default=15, ge=1)
    seconds: float = Field(default=3.0, gt=0)
    train_seconds_range: tuple[float, float] | None = (1.5, 4.5)  # null: `seconds` in training too

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.codec is None and self.model is None:
            raise ValueError("what is heard must be said: set model, such as m-a-p/MERT-v1-95M, or codec")
        if self.codec is not None and (self.codec.frame_format.kind != "codes" or self.codec.uses_chunks):
            raise ValueError("codec: tokens are needed, one frame after another; take a codec that gives codes, and no chunks")
        if self.eval_q > self.levels:
            raise ValueError(f"eval_q ({self.eval_q}) cannot be more than levels ({self.levels})")
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        if self.train_seconds_range is not None and not 0 < self.train_seconds_range[0] <= self.train_seconds_range[1]:
            raise ValueError(
                f"train_seconds_range must be two numbers of seconds, the lesser first, not {self.train_seconds_range}"
            )
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "tokens"

    @property
    def input_sample_rate(self) -> int:
        """The sample rate of what is heard."""
        return self.sample_rate if self.codec is None else self.codec.sample_rate

    @classmethod
    def example(cls) -> tuple["StyleSpec", list[Any]]:
        codec = CodecSpec.parse(
            {"type": "encodec", "sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
        )
        turns = {900: 0.02, 90: 0.11, 700: 0.31}  # cycles a sample of three tones
        sounds = [Audio((6.283 * turn * torch.arange(n)).sin()[None, None], 800) for n, turn in turns.items()]
        small = {"hidden": 16, "depth": 2, "heads": 2, "levels": 3, "bins": 8, "eval_q": 2}
        told = {"audio": sounds[2], "start": 0.1, "seconds": 0.3, "levels": 3}
        return cls.parse(
            {"output_dim": 8, "codec": codec, **small, "downsample": 5, "seconds": 0.4, "train_seconds_range": (0.2, 0.5)}
        ), [
            *sounds[:2],
            told,
        ]

    def build(self) -> "StyleConditioner":
        return StyleConditioner(self)

    def resolve_paths(self, folder: Path) -> Self:
        local = self.model is not None and self.model.startswith("./")
        return self.model_copy(update={"model": str(folder / str(self.model))}) if local else self


class StyleConditioner(Conditioner[Any]):
    """Features of an excerpt, a transformer that looks both ways, a bottleneck, and a linear layer.

    A value is a recording (Audio of one clip, or the path of a file), or `{"audio": ...}` with the `start` of the excerpt
    and its `seconds`, and the `levels` of the bottleneck that say it. Without a start it is the middle that is heard.
    """

    placeholder = None
    padding_masks: ClassVar[dict[str, str]] = {
        "wave": "samples",
        "x": "mask",
        "ids": "mask",
        "mask": "mask",
    }  # for a cache of features
    uncached_inputs: ClassVar[tuple[str, ...]] = ("levels",)
    rng: torch.Generator | None = None  # what the codebooks learn with: that of the step whose values were varied

    def __init__(self, spec: StyleSpec) -> None:
        super().__init__(spec)
        self.codec = self.listener = None
        if spec.codec is not None:
            self.codec = spec.codec.build().requires_grad_(False)
            frame_format = spec.codec.frame_format
            self.tables = nn.ModuleList(
                nn.Embedding(frame_format.cardinality, spec.hidden) for _ in range(frame_format.channels)
            )
        else:
            self.listener = HubertEncoder(spec)
            self.up = nn.Linear(spec.dim or self.listener.dim, spec.hidden)
        blocks = (Block(spec.hidden, spec.heads, hidden=4 * spec.hidden) for _ in range(spec.depth))
        self.blocks = nn.ModuleList(blocks)
        self.bottleneck = VariableRVQ(spec.hidden, codebooks=spec.levels, bins=spec.bins)
        self.out = nn.Linear(spec.hidden, spec.output_dim)

    def prepare_training(self, values: Iterable[Any]) -> None:
        """Fetches what is needed, so that what is missing is said before the first step."""
        if self.listener is not None:
            self.listener.get(self.out.weight.device)
        elif self.codec is not None and self.spec.model is not None:
            self.codec.load_weights_from(self.spec.model)
        else:
            warnings.warn("the codec of a `style` begins as noise and stays so; set its `model`", stacklevel=2)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """What features depend on beside the spec; None in training, whose excerpts are drawn and do not come again."""
        if self.training:
            return None
        if self.listener is None:
            assert self.codec is not None
            return {}, self.codec.state_dict()
        return self.listener.config, self.listener.get(self.out.weight.device).state_dict()

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        if self.listener is None:
            return self.spec.model_copy(update={"model": None})  # its weights are saved with the others
        here = {"dim": self.listener.dim}
        if self.listener.source.folder is None:
            return self.spec.model_copy(update=here | {"revision": self.listener.source.resolved_revision})
        self.listener.save(folder / subfolder)
        return self.spec.model_copy(update=here | {"model": f"./{subfolder}", "revision": None})

    def value_from_item(self, item: Item, name: str) -> Any:
        value = super().value_from_item(item, name)
        if value is None and self.spec.fallback == "audio" and {"codes", "latents"} & item.keys():
            raise RequestError("the items are frames of a codec without their sound; train on audio, or set fallback: null")
        return value

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """The mono `wave` [b t] and its true `samples` [b]; the `start` and `length` of the excerpts; their `levels`."""
        told = [self._told(value) for value in values]
        audio = Audio.pad_and_stack([sound for sound, _ in told])
        rows = []
        for samples, (_, how) in zip(audio.lengths.tolist(), told, strict=True):
            length = min(samples, max(1, round(how.get("seconds", self.spec.seconds) * self.spec.input_sample_rate)))
            start = round(how["start"] * self.spec.input_sample_rate) if "start" in how else (samples - length) // 2
            if start >= samples:
                raise RequestError(f"the excerpt starts at {how['start']:g} s, but the sound ends at {audio.seconds.max():g} s")
            rows.append([start, min(length, samples - start), how.get("levels", self.spec.eval_q)])
        start, length, levels = torch.tensor(rows).unbind(1)
        return {"wave": audio.wave[:, 0], "samples": audio.lengths, "start": start, "length": length, "levels": levels}

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """An excerpt of a length and at a place that are drawn, and some of the codebooks, from the first on."""
        samples, device = prepared.tensors["samples"].cpu(), prepared.tensors["samples"].device
        shortest, longest = self.spec.train_seconds_range or (self.spec.seconds, self.spec.seconds)
        long, place, strength = torch.rand(3, len(samples), generator=rng, dtype=torch.float64)
        wanted = ((shortest + (longest - shortest) * long) * self.spec.input_sample_rate).round().long().clamp(min=1)
        length = torch.minimum(wanted, samples)
        drawn = {
            "start": (place * (samples - length + 1)).long(),
            "length": length,
            "levels": 1 + (strength * self.spec.levels).long(),
        }
        self.rng = rng
        return replace(prepared, tensors=prepared.tensors | {name: x.to(device) for name, x in drawn.items()})

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Frames `x` [b n e] or tokens `ids` [b n k] of the excerpts, the `mask` [b n] of those that are real, `levels`."""
        wave, least = tensors["wave"], math.ceil(_LEAST * self.spec.input_sample_rate)
        bounds = zip(wave, tensors["start"].tolist(), tensors["length"].tolist(), strict=True)
        excerpts = [row[start : start + length] for row, start, length in bounds]
        excerpts = [nn.functional.pad(row, (0, max(0, least - len(row)))) for row in excerpts]
        lengths = torch.tensor([len(row) for row in excerpts], device=wave.device)
        with torch.autocast(wave.device.type, enabled=False):
            if self.codec is not None:
                rows = pad_sequence(excerpts, batch_first=True)[:, None].expand(-1, self.spec.codec.channels, -1)
                codes: Any = self.codec.encode(Audio(rows, self.spec.input_sample_rate, lengths))
                found, n = {"ids": codes.ids.transpose(1, 2)}, codes.lengths
            else:
                frames = [self._listened(row) for row in excerpts]
                found, n = {"x": pad_sequence(frames, batch_first=True)}, torch.tensor([len(row) for row in frames])
        width = next(iter(found.values())).shape[1]
        mask = torch.arange(width, device=wave.device) < n.to(wave.device)[:, None]
        return {**found, "mask": mask, "levels": tensors["levels"]}

    def forward(self, features: PreparedInputs) -> Condition:
        """Items without a value count nowhere, in training neither."""
        here = features.tensors["mask"] & features.present[:, None]
        return super().forward(replace(features, tensors={**features.tensors, "mask": here}))

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        x = self._transformed(tensors, mask) * mask[..., None]
        rng = self.rng if self.training else None
        x = self.bottleneck(x, mask, tensors["levels"], rng=rng)[:, :: self.spec.downsample]
        mask = mask[:, :: self.spec.downsample]
        return MaskedSequence(self.out(x.to(self.out.weight.dtype)) * mask[..., None], mask)

    def _transformed(self, tensors: dict[str, Tensor], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        if self.codec is not None:
            tables: Iterable[Callable[[Tensor], Tensor]] = self.tables
            x = torch.stack([table(ids) for table, ids in zip(tables, tensors["ids"].unbind(2), strict=True)]).sum(0)
        else:
            x = self.up(tensors["x"].to(self.up.weight.dtype))
        n = torch.arange(x.shape[1], device=x.device)
        x = x + sinusoidal_embedding(n[None], self.spec.hidden).to(x.dtype)
        seen = (mask | (n == 0))[:, None, None].expand(-1, -1, len(n), -1)
        for block in self.blocks:
            x = block(x, mask=seen)
        return x

    def _listened(self, row: Float[Tensor, " t"]) -> Float[Tensor, "n e"]:
        """What the model makes of one excerpt, which is its own mean and deviation where these count."""
        if self.spec.normalize:
            row = (row - row.mean()) / (row.var(correction=0) + 1e-7).sqrt()
        assert self.listener is not None
        return self.listener.get(row.device)(row[None]).last_hidden_state[0]

    def _told(self, value: Any) -> tuple[Audio, Mapping[str, Any]]:
        """A sound in mono, and what is said of the excerpt."""
        if value is None:
            return silence(self.spec.input_sample_rate), {}
        how = value if isinstance(value, Mapping) else {"audio": value}
        if "audio" not in how or set(how) - set(_KEYS):
            raise RequestError(
                f"a style is a sound, or a mapping of audio to it, and of {', '.join(_KEYS[1:])}; got {sorted(how)}"
            )
        for key in ("start", "seconds", "levels"):
            number = how.get(key, 1)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
                raise RequestError(f"{key} of a style must be a number, not {number!r}")
        levels, most = how.get("levels", 1), self.spec.levels
        if levels not in range(1, most + 1):
            raise RequestError(f"levels of a style must be a whole number from 1 to {most}, not {levels!r}")
        sound = load_condition_audio([how["audio"]], self.spec.input_sample_rate)
        return sound, how

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves what listens too, but never casts it."""
        super()._apply(fn, recurse)
        if self.listener is not None and not self.out.weight.is_meta:
            self.listener.move_to(self.out.weight.device)
        return self
