"""Style of a recording: the style condition of MusicGen-Style (arXiv:2407.12563)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import ConditionerSpec, Item, PreparedInputs, is_number, pad_rows
from cadenza.conditioners.base_encoders import CodecConditioner, example_codec, save_source
from cadenza.core.errors import RequestError
from cadenza.core.types import Condition, ConditionKind, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.nn.hubert import HubertEncoder
from cadenza.nn.rope import sinusoidal_embedding
from cadenza.nn.transformer import Block
from cadenza.nn.vector_quantize import VariableRVQ

_MIN_SECONDS = 0.1  # shorter excerpts are padded with silence
_KEYS = ("audio", "start", "seconds", "levels")


class StyleSpec(ConditionerSpec):
    """Style of an excerpt of `seconds`: frames of a MERT `model` or tokens of `codec`, a transformer and residual VQ.

    The quantizer has `levels` codebooks, of which generation uses `eval_q`; every `downsample`-th vector is returned. In
    training the excerpt has a random start and a length in `train_seconds_range`. The frozen `codec` is saved with the
    weights and loads them from `model`, a saved system, before training.
    """

    type: Literal["style"] = "style"
    widget: ClassVar[str] = "audio"
    output_kind: ClassVar[ConditionKind] = "tokens"
    path_fields: ClassVar[tuple[str, ...]] = ("model",)
    model: str | None = None
    revision: str | None = None  # of a repository
    codec: CodecSpec | None = None
    sample_rate: int = Field(default=24000, gt=0)  # of `model`'s input; a codec has its own
    normalize: bool = False  # excerpts to mean 0 and variance 1, if `model` was trained with it
    dim: int | None = Field(default=None, ge=1)  # width of the frames of `model`; default: from its config
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
    def _check_sizes(self) -> Self:
        if self.codec is None and self.model is None:
            raise ValueError("set `model` (for example m-a-p/MERT-v1-95M) or `codec`")
        if self.codec is not None and (self.codec.frame_format.kind != "codes" or self.codec.uses_chunks):
            raise ValueError("codec: expected codes of consecutive frames, not latents or chunks. Use another codec")
        if self.eval_q > self.levels:
            raise ValueError(f"eval_q ({self.eval_q}) cannot be more than levels ({self.levels})")
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        if self.train_seconds_range is not None and not 0 < self.train_seconds_range[0] <= self.train_seconds_range[1]:
            raise ValueError(f"train_seconds_range: expected two seconds, the lesser first, not {self.train_seconds_range}")
        return self

    @property
    def input_sample_rate(self) -> int:
        """Sample rate of the audio input in Hz."""
        return self.sample_rate if self.codec is None else self.codec.sample_rate

    @classmethod
    def example(cls) -> tuple["StyleSpec", list[Any]]:
        codec = example_codec()
        frequencies = {900: 0.02, 90: 0.11, 700: 0.31}  # length: cycles per sample
        sounds = [Audio((6.283 * frequency * torch.arange(n)).sin()[None, None], 800) for n, frequency in frequencies.items()]
        sizes = {"hidden": 16, "depth": 2, "heads": 2, "levels": 3, "bins": 8, "eval_q": 2, "downsample": 5}
        spec = cls.parse({"output_dim": 8, "codec": codec, **sizes, "seconds": 0.4, "train_seconds_range": (0.2, 0.5)})
        return spec, [*sounds[:2], {"audio": sounds[2], "start": 0.1, "seconds": 0.3, "levels": 3}]

    def build(self) -> "StyleConditioner":
        return StyleConditioner(self)


class StyleConditioner(CodecConditioner):
    """Encode an excerpt by a frozen encoder, a bidirectional transformer, residual VQ and a linear layer.

    A value is a recording (Audio of one clip or a path), or a mapping with `audio` and the `start` and `seconds` of the
    excerpt (default: the middle) and the number of `levels` to use. Raises RequestError for other values.
    """

    placeholder = None
    padding_masks = {"wave": "samples", "x": "mask", "ids": "mask", "mask": "mask"}
    uncached_inputs: ClassVar[tuple[str, ...]] = ("levels",)
    rng: torch.Generator | None = None  # of the last `augment`; initializes the codebooks

    def __init__(self, spec: StyleSpec) -> None:
        super().__init__(spec, spec.codec)
        self.model = None if spec.codec is not None else HubertEncoder(spec)
        if spec.codec is not None:
            codebooks = range(spec.codec.frame_format.channels)
            self.tables = nn.ModuleList(nn.Embedding(spec.codec.frame_format.cardinality, spec.hidden) for _ in codebooks)
        elif self.model is not None:
            self.up = nn.Linear(spec.dim or self.model.dim, spec.hidden)
        self.blocks = nn.ModuleList(Block(spec.hidden, spec.heads, hidden=4 * spec.hidden) for _ in range(spec.depth))
        self.bottleneck = VariableRVQ(spec.hidden, codebooks=spec.levels, bins=spec.bins)
        self.out = nn.Linear(spec.hidden, spec.output_dim)

    def prepare_training(self, values: Iterable[Any]) -> None:
        """Load the frozen encoder or codec; raises CheckpointError if it is missing."""
        if self.model is not None:
            self.model.get(self.dtype_ref.device)
        super().prepare_training(values)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return config and weights of the frozen encoder; None in training, whose random excerpts are not cached."""
        if self.training:
            return None
        if self.model is None:
            return super().cache_fingerprint()
        return self.model.config, self.model.get(self.dtype_ref.device).state_dict()

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        if self.model is None:
            return super().save_assets(folder, subfolder)
        fields = save_source(self.model.source, self.model.save, folder, subfolder)
        return self.spec.model_copy(update={"dim": self.model.dim, **fields})

    def value_from_item(self, item: Item, name: str) -> Any:
        value = super().value_from_item(item, name)
        if value is None and self.spec.fallback == "audio" and {"codes", "latents"} & item.keys():
            raise RequestError("the items are frames of a codec without their sound; train on audio, or set fallback: null")
        return value

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the mono `wave` [b, t], its length `samples`, and `start`, `length` and `levels` of the excerpts [b]."""
        parsed = [self._parse(value) for value in values]
        audio = Audio.pad_and_stack([sound for sound, _ in parsed])
        rows = []
        for samples, (_, options) in zip(audio.lengths.tolist(), parsed, strict=True):
            length = min(samples, max(1, round(options.get("seconds", self.spec.seconds) * self.spec.input_sample_rate)))
            start = round(options["start"] * self.spec.input_sample_rate) if "start" in options else (samples - length) // 2
            if start >= samples:
                end = audio.seconds.max()
                raise RequestError(f"the excerpt starts at {options['start']:g} s, but the sound ends at {end:g} s")
            rows.append([start, min(length, samples - start), options.get("levels", self.spec.eval_q)])
        start, length, levels = torch.tensor(rows).unbind(1)
        return {"wave": audio.wave[:, 0], "samples": audio.lengths, "start": start, "length": length, "levels": levels}

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """Choose a random excerpt and a random number of codebooks per item."""
        samples, device = prepared.tensors["samples"].cpu(), prepared.tensors["samples"].device
        shortest, longest = self.spec.train_seconds_range or (self.spec.seconds, self.spec.seconds)
        length_share, start_share, level_share = torch.rand(3, len(samples), generator=rng, dtype=torch.float64)
        seconds = shortest + (longest - shortest) * length_share
        length = torch.minimum((seconds * self.spec.input_sample_rate).round().long().clamp(min=1), samples)
        start = (start_share * (samples - length + 1)).long()
        drawn = {"start": start, "length": length, "levels": 1 + (level_share * self.spec.levels).long()}
        self.rng = rng
        return replace(prepared, tensors=prepared.tensors | {name: x.to(device) for name, x in drawn.items()})

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return frames `x` [b, n, e] or tokens `ids` [b, n, k]; also their `mask` [b, n] and `levels` [b]."""
        wave, shortest = tensors["wave"], math.ceil(_MIN_SECONDS * self.spec.input_sample_rate)
        bounds = zip(wave, tensors["start"].tolist(), tensors["length"].tolist(), strict=True)
        excerpts = [row[start : start + length] for row, start, length in bounds]
        excerpts = [nn.functional.pad(row, (0, max(0, shortest - len(row)))) for row in excerpts]
        lengths = torch.tensor([len(row) for row in excerpts], device=wave.device)
        with torch.autocast(wave.device.type, enabled=False):
            if self.codec is not None:
                rows = pad_rows(excerpts)[0][:, None].expand(-1, self.spec.codec.channels, -1)
                codes: Any = self.codec.encode(Audio(rows, self.spec.input_sample_rate, lengths))
                mask = torch.arange(codes.ids.shape[2], device=wave.device) < codes.lengths[:, None]
                return {"ids": codes.ids.transpose(1, 2), "mask": mask, "levels": tensors["levels"]}
            x, mask = pad_rows([self._encode_excerpt(row) for row in excerpts])
            return {"x": x, "mask": mask.to(wave.device), "levels": tensors["levels"]}

    def forward(self, features: PreparedInputs) -> Condition:
        """Project encoded inputs; absent items do not update the codebooks."""
        mask = features.tensors["mask"] & features.present[:, None]
        return super().forward(replace(features, tensors={**features.tensors, "mask": mask}))

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        x = self._transform(tensors, mask) * mask[..., None]
        rng = self.rng if self.training else None
        x = self.bottleneck(x, mask, tensors["levels"], rng=rng)[:, :: self.spec.downsample]
        mask = mask[:, :: self.spec.downsample]
        return MaskedSequence(self.out(x.to(self.dtype_ref.dtype)) * mask[..., None], mask)

    def _transform(self, tensors: dict[str, Tensor], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        if self.codec is not None:
            x = torch.stack([table(ids) for table, ids in zip(self.tables, tensors["ids"].unbind(2), strict=True)]).sum(0)
        else:
            x = self.up(tensors["x"].to(self.dtype_ref.dtype))
        n = torch.arange(x.shape[1], device=x.device)
        x = x + sinusoidal_embedding(n[None], self.spec.hidden).to(x.dtype)
        valid = (mask | (n == 0))[:, None, None].expand(-1, -1, len(n), -1)
        for block in self.blocks:
            x = block(x, mask=valid)
        return x

    def _encode_excerpt(self, row: Float[Tensor, " t"]) -> Float[Tensor, "n e"]:
        """Return the model's frames of one excerpt, normalized if `normalize`."""
        if self.spec.normalize:
            row = (row - row.mean()) / (row.var(correction=0) + 1e-7).sqrt()
        assert self.model is not None
        return self.model.get(row.device)(row[None]).last_hidden_state[0]

    def _parse(self, value: Any) -> tuple[Audio, Mapping[str, Any]]:
        """Return mono audio and the options of the excerpt; raises RequestError for an invalid value."""
        if value is None:
            return silence(self.spec.input_sample_rate), {}
        options = value if isinstance(value, Mapping) else {"audio": value}
        if "audio" not in options or set(options) - set(_KEYS):
            names = ", ".join(_KEYS[1:])
            raise RequestError(f"a style is a sound, or a mapping of audio to it, and of {names}; got {sorted(options)}")
        for key in _KEYS[1:]:
            number = options.get(key, 1)
            if not is_number(number) or number < 0:
                raise RequestError(f"{key} of a style must be a number, not {number!r}")
        levels, most = options.get("levels", 1), self.spec.levels
        if levels not in range(1, most + 1):
            raise RequestError(f"levels of a style must be a whole number from 1 to {most}, not {levels!r}")
        return load_condition_audio([options["audio"]], self.spec.input_sample_rate), options

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the frozen encoder with the module without casting it."""
        super()._apply(fn, recurse)
        if self.model is not None and not self.dtype_ref.is_meta:
            self.model.move_to(self.dtype_ref.device)
        return self
