"""Chroma of a recording: the melody condition of MusicGen (arXiv:2306.05284)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from cadenza.conditioners.base import ConditionerSpec, Item, PreparedInputs, ProjectionConditioner
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.types import Condition, ConditionKind
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.dsp.spectral import chroma_filters, chroma_frames, chromagram, one_hot_argmax
from cadenza.nn.demucs import Separator


class ChromaSpec(ConditionerSpec):
    """Chroma of `bins` pitch classes in windows of `window` samples at `sample_rate`, with a hop of `hop` samples.

    Audio is cut to `seconds`, the chroma to `max_frames`; shorter ones are repeated or masked (`pad_mode`). Only `stems` of a
    mix are used, which `separator` (a Demucs by name or folder) extracts unless the item has stems. With `fallback: audio`
    training uses the clip itself.
    """

    type: Literal["chroma"] = "chroma"
    widget: ClassVar[str] = "audio"
    output_kind: ClassVar[ConditionKind] = "frames"
    path_fields: ClassVar[tuple[str, ...]] = ("separator",)
    null_embedding: Literal["zeros", "learned", "silence"] = "silence"  # type: ignore[assignment]  # silence: chroma of silence
    sample_rate: int = Field(default=32000, gt=0)
    window: int = Field(default=16384, ge=2)
    hop: int = Field(default=4096, ge=1)
    bins: int = Field(default=12, ge=2)
    one_hot: bool = True  # else all pitch classes, divided by the strongest
    seconds: float | None = Field(default=None, gt=0)
    max_frames: int | None = Field(default=None, ge=1)
    pad_mode: Literal["repeat", "mask"] = "repeat"  # of audio shorter than `max_frames`
    pad_to: Literal["own", "longest"] = "own"  # longest: pad with silence to the longest of the batch
    stems: tuple[str, ...] | None = Field(default=None, min_length=1)  # also as vocals+other; null: the whole mix
    separator: str = Field(default="htdemucs", min_length=1)
    project: Literal["always", "auto"] = "always"  # auto: only if `bins` differs from `output_dim`

    @field_validator("stems", mode="before")
    @classmethod
    def _split_stems(cls, value: Any) -> Any:
        return tuple(value.split("+")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.window % 2:
            raise ValueError(f"window ({self.window}) must be even")
        return self

    @property
    def frame_rate(self) -> float:
        """Chroma frames per second."""
        return self.sample_rate / self.hop

    @classmethod
    def example(cls) -> tuple["ChromaSpec", list[Any]]:
        rng = torch.Generator().manual_seed(0)
        short, long = (Audio(torch.randn(1, 1, n, generator=rng), 8000) for n in (900, 3000))
        stereo = Audio(torch.randn(1, 2, 2000, generator=rng), 16000)
        spec = cls(output_dim=8, sample_rate=8000, window=512, hop=256, stems=("vocals", "other"))
        return spec, [{"vocals": sound} for sound in (stereo, short, long)]

    def build(self) -> "ChromaConditioner":
        return ChromaConditioner(self)


class ChromaConditioner(ProjectionConditioner[Any]):
    """Project chroma with a linear layer.

    A value is a recording (Audio of one clip or a path), or a mapping of stems to recordings; an item's `stems` replace
    separation. Raises RequestError if no needed stem is given, CheckpointError if the separator is missing.
    """

    placeholder = None
    extra_inputs: ClassVar[tuple[str, ...]] = ("stems",)

    def __init__(self, spec: ChromaSpec) -> None:
        super().__init__(spec)
        self.separator = Separator(spec.separator)
        sound = {} if spec.pad_to == "longest" else {"wave": "samples"}  # otherwise padding does not affect the chroma
        self.padding_masks = {**sound, "x": "mask", "mask": "mask"}
        self.add_projection(spec.bins)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return the fingerprint of the separator; None if it is not used or not available."""
        if self.spec.stems is None:
            return None
        try:
            return self.separator.cache_fingerprint()
        except CheckpointError:
            return None  # the first mix that needs it raises

    def is_cacheable(self, prepared: PreparedInputs) -> bool:
        """Whether a mix must be separated; chroma alone is fast to compute."""
        return bool(prepared.tensors["mixed"].any())

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        if self.spec.stems is None or self.separator.folder is None:
            return self.spec
        self.separator.save(folder / subfolder)
        return self.spec.model_copy(update={"separator": f"./{subfolder}"})

    def with_max_frames(self, frames: int) -> Self:
        return self if self.spec.pad_mode == "repeat" else super().with_max_frames(frames)

    def value_from_item(self, item: Item, name: str) -> Any:
        value, own = super().value_from_item(item, name), item.get("stems")
        if value is None and self.spec.fallback == "audio" and {"codes", "latents"} & item.keys():
            raise RequestError("the items are frames of a codec without their sound; train on audio, or set fallback: null")
        return own if value is not None and own is not None and self.spec.stems is not None else value

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the mono `wave` [b, t], its length `samples` [b], `mixed` [b] if it needs separation, and `mask` [b, n]."""
        sounds = [self._sound(value) for value in values]
        audio = Audio.pad_and_stack([sound for sound, _ in sounds])
        wave, samples = audio.wave[:, 0], audio.lengths
        if self.spec.seconds is not None:
            most = max(1, round(self.spec.seconds * self.spec.sample_rate))
            wave, samples = wave[:, :most], samples.clamp(max=most)
        spec, mixed = self.spec, torch.tensor([mixed for _, mixed in sounds])
        counts = torch.tensor([chroma_frames(own, spec.window, spec.hop) for own in samples.tolist()])
        if spec.max_frames is not None and spec.pad_mode == "repeat":
            counts.fill_(spec.max_frames)
        mask = torch.arange(spec.max_frames or int(counts.max())) < counts[:, None]
        return {"wave": wave, "samples": samples, "mixed": mixed, "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the chroma `x` [b, n, k] and its `mask` [b, n]."""
        spec, wave, mask = self.spec, tensors["wave"], tensors["mask"]
        n = mask.shape[1]
        samples, mixed = tensors["samples"].tolist(), tensors["mixed"].tolist()
        filters = chroma_filters(spec.sample_rate, spec.window, bins=spec.bins).to(wave.device)
        rows = []
        for row, own, separate in zip(wave, samples, mixed, strict=True):
            sound = row if spec.pad_to == "longest" else row[:own]
            with torch.autocast(wave.device.type, enabled=False):
                rows.append(chromagram(self._stems(sound) if separate else sound, filters, hop=spec.hop))
        if spec.max_frames is not None and spec.pad_mode == "repeat":
            rows = [row.repeat(-(-n // len(row)), 1) for row in rows]
        x = torch.stack([F.pad(row, (0, 0, 0, n - len(row))) for row in rows])
        return {"x": (one_hot_argmax(x) if spec.one_hot else x) * mask[..., None], "mask": mask}

    def forward(self, features: PreparedInputs) -> Condition:
        condition = super().forward(features)
        if self.spec.null_embedding != "silence":
            return condition
        first = torch.arange(self.spec.bins, device=self.dtype_ref.device) == (0 if self.spec.one_hot else -1)
        null = self.out(first.to(self.dtype_ref.dtype)).expand(self.spec.max_frames or 1, -1)
        return replace(condition, null_embedding=null)

    def _sound(self, value: Any) -> tuple[Audio, bool]:
        """Return a value as mono audio, and whether its stems must be separated."""
        spec = self.spec
        if value is None:
            return silence(spec.sample_rate), False
        if not isinstance(value, Mapping):
            return load_condition_audio([value], spec.sample_rate), spec.stems is not None
        names = list(value) if spec.stems is None else [stem for stem in spec.stems if value.get(stem) is not None]
        if not names:
            given, needed = ", ".join(map(str, value)) or "none", ", ".join(spec.stems or ())
            raise RequestError(f"the stems are {given}; needed is one of {needed}")
        sounds = load_condition_audio([value[stem] for stem in names], spec.sample_rate)
        return Audio(sounds.wave.sum(0, keepdim=True), spec.sample_rate), False

    def _stems(self, sound: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Return the sum of the stems `spec.stems` of a mix."""
        stems = self.separator.separate(sound[None], self.spec.sample_rate)
        if unknown := [stem for stem in self.spec.stems if stem not in stems]:
            raise RequestError(f"stems: '{unknown[0]}' is not a stem of '{self.spec.separator}'. Available: {', '.join(stems)}")
        return torch.stack([stems[stem][0] for stem in self.spec.stems]).sum(0)
