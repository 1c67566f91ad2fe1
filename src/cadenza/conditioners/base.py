"""Conditioner: values of one item id to one Condition, in three steps.

`prepare` runs on the host, in the data worker; `features` runs frozen encoders without gradient (what a cache
may keep); `forward` is trainable and stays on the device. `None` is the only way to say 'absent'.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar
from urllib.parse import quote

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.codecs.base import Codec, CodecSpec
from cadenza.core.errors import RequestError
from cadenza.core.spec import RegisteredSpec
from cadenza.core.timeline import Timeline
from cadenza.core.types import Condition, ConditionKind, MaskedSequence

Value = TypeVar("Value")
_SENTENCE = 16  # tokens


class ConditionerSpec(RegisteredSpec):
    """What every conditioner's spec says."""

    family: ClassVar[str] = "cadenza.conditioners"
    widget: ClassVar[str] = "text"  # what a form should show: text, number, choice, audio, ...
    output_dim: int
    null_embedding: Literal["zeros", "learned"] = "learned"  # what stands for no value: nothing, or one trained position
    fallback: str | None = None  # the id of the item whose value counts where it has none under that of this part

    @property
    def output_kind(self) -> ConditionKind:
        raise NotImplementedError(f"{type(self).__name__} must say what it gives")

    def num_tokens(self, frames: int) -> int:
        """Vectors that a value becomes, for clips of so many frames; for a text as many as a sentence has, about."""
        return {"vector": 1, "tokens": _SENTENCE, "frames": frames}[self.output_kind]

    @classmethod
    def example(cls) -> tuple["ConditionerSpec", list[Any]]:
        """A tiny spec with two or more different values, without downloads."""
        raise NotImplementedError(f"{cls.__name__} must give an example")

    def build(self) -> "Conditioner[Any]":
        raise NotImplementedError(f"{type(self).__name__} must build its conditioner")

    def resolve_paths(self, folder: Path) -> Self:
        """The spec of a system saved in `folder`, with what `Conditioner.keep` put there found; most have nothing there."""
        return self


class FramewiseConditionerSpec(ConditionerSpec):
    """What the spec of a conditioner says that gives one vector a frame, at a rate of its own choice, a codec's as a rule."""

    frame_rate: float = Field(gt=0)  # frames a second
    max_frames: int = Field(ge=1)  # of the longest clip in training; a shorter one takes the first of them

    @property
    def output_kind(self) -> ConditionKind:
        return "frames"


class CodecConditionerSpec(ConditionerSpec):
    """What the spec of a conditioner says that hears sounds at the sample rate of `codec`, frozen and part of its weights.

    Before training begins the codec takes its weights from `model`, a saved system that has the same one. With
    `given: frames` a value is what the codec would give, and no codec is kept.
    """

    codec: CodecSpec
    model: str | None = None
    input_kind: Literal["audio", "frames"] = "audio"

    @model_validator(mode="after")
    def _evenly(self) -> Self:
        if self.codec.uses_chunks:
            raise ValueError("codec: its frames are those of overlapping chunks, not one after another; take another codec")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "frames"

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def hop(self) -> int:
        """Samples per frame, at the sample rate of the codec."""
        return self.codec.hop_length


@dataclass(frozen=True)
class PreparedInputs:
    """Tensors of a batch of values; `present` is False where an item has none.

    Where values change over time, the rows are the values of each of s spans, item by item, and `spans` says when
    they hold, as in `Condition`.
    """

    tensors: dict[str, Tensor]
    present: Bool[Tensor, " b"]
    spans: Float[Tensor, "i s 4"] | None = None

    def to(self, device: torch.device | str) -> "PreparedInputs":
        spans = None if self.spans is None else self.spans.to(device)
        return PreparedInputs({name: x.to(device) for name, x in self.tensors.items()}, self.present.to(device), spans)


class Conditioner(nn.Module, ABC, Generic[Value]):
    """A subclass says `blank`, `read` and `embed`, and `encode` where it has a frozen encoder."""

    handles_timelines: ClassVar[bool] = (
        False  # whether it reads lists of (start, end, value) itself, instead of one value at a time
    )
    placeholder: Value  # stands in for None so that shapes hold; what it gives is replaced by the null
    extra_inputs: ClassVar[tuple[str, ...]] = ()  # other ids of an item that `pick` may look at
    uncached_inputs: ClassVar[tuple[str, ...]] = ()  # prepared tensors that are features as they are, heard by no encoder
    null: Tensor | None

    def __init__(self, spec: ConditionerSpec) -> None:
        super().__init__()
        self.spec: Any = spec
        self.null = nn.Parameter(torch.zeros(1, spec.output_dim)) if spec.null_embedding == "learned" else None

    def quantize_frozen_(self) -> None:
        """From here on keeps the weights of a frozen encoder that is no part of its own in 8 bits; most have none."""

    def unload(self) -> None:
        """Lets go of what is read again in no time when it is next needed; most hold nothing such."""

    def fit(self, values: Iterable[Value | None]) -> None:
        """Learns from the training values what must stand before the first step, such as a vocabulary; most need nothing."""

    def save_assets(self, folder: Path, place: str) -> ConditionerSpec:
        """The spec to save in `folder`, a system's, of which this may fill the subfolder `place`.

        A part that needs more than its spec and its weights, such as a frozen encoder that came from a folder, copies
        it there and names it relative to `folder` (`./place`); `ConditionerSpec.within` finds it again on loading.
        """
        return self.spec

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """What a training step sees in place of the prepared values, drawn with a CPU generator; most see them as they are."""
        return prepared

    def value_from_item(self, item: "Item", name: str) -> Value | None:
        """The value of an item whose id for this part is `name`; most need nothing else of the item."""
        value = item.get(name)
        return item.get(self.spec.fallback) if value is None and self.spec.fallback is not None else value

    def crop_value(self, value: Value, start: float) -> Value | None:
        """The value for a clip that begins `start` seconds into the piece that it is of; most hold throughout a piece."""
        return value

    def prepare(self, values: Sequence[Value | None]) -> PreparedInputs:
        """All that may wait for the CPU: checking, tokenising, reading, resampling."""
        present = torch.tensor([value is not None for value in values])
        return PreparedInputs(self.preprocess([self.placeholder if value is None else value for value in values]), present)

    def with_max_frames(self, frames: int) -> "Conditioner[Value]":
        """The same part for clips of so many frames, itself where they do not matter; weights are shared."""
        if not isinstance(self.spec, FramewiseConditionerSpec) or frames <= self.spec.max_frames:
            return self
        longer = copy(self)
        longer.spec = self.spec.model_copy(update={"max_frames": frames})
        return longer

    def unloaded_bytes(self) -> int:
        """Bytes of frozen networks still to be read, when it is first used, which are no part of the system's weights."""
        return 0

    def peak_loading_bytes(self) -> int:
        """Bytes that these take at the worst moment of reading them."""
        return 0

    def is_cacheable(self, prepared: PreparedInputs) -> bool:
        """Whether a cache should look for the features of these values, where the part has any that are kept."""
        return True

    @torch.no_grad()
    def encode(self, prepared: PreparedInputs) -> PreparedInputs:
        """What frozen encoders make of the prepared values; the same thing where there are none."""
        return PreparedInputs(self.encode_frozen(prepared.tensors), prepared.present)

    def forward(self, features: PreparedInputs) -> Condition:
        tokens = self.project(features.tensors)
        return Condition(tokens.x, tokens.mask & features.present[:, None], features.present, self.null)

    @abstractmethod
    def preprocess(self, values: Sequence[Value]) -> dict[str, Tensor]:
        """CPU tensors of a batch of values; raises RequestError for a value it cannot use."""

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors

    @abstractmethod
    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence: ...


class CodecConditioner(Conditioner[Value]):
    """A conditioner with a frozen codec of its own, or None where it needs none; its spec says `model`."""

    codec: Codec | None

    def fit(self, values: Iterable[Value | None]) -> None:
        if self.codec is None:
            return
        if self.spec.model is None:
            warnings.warn(f"the codec of a `{self.spec.type}` begins as noise and stays so; set its `model`", stacklevel=2)
        else:
            self.codec.load_weights_from(self.spec.model)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """What features depend on beside the spec: the weights of the codec, where there is one."""
        return None if self.codec is None else ({}, self.codec.state_dict())

    def save_assets(self, folder: Path, place: str) -> ConditionerSpec:
        return self.spec.model_copy(update={"model": None})  # its weights are saved with the others


Item = Mapping[str, Any]


class ConditionerSet(nn.ModuleDict):
    """Conditioners by item id; the same three steps over a batch of items."""

    if TYPE_CHECKING:  # what a module dict holds is typed as `Module`

        def __getitem__(self, key: str) -> Conditioner[Any]: ...
        def items(self) -> ItemsView[str, Conditioner[Any]]: ...
        def values(self) -> ValuesView[Conditioner[Any]]: ...

    def fit(self, items: Iterable[Item]) -> None:
        """Fits each part on its values; `items` are gone through once for each part that looks at them."""
        for name, part in self.items():
            part.fit(_each(part, (item.get(name) for item in items)))

    def quantize_frozen_(self) -> None:
        """Keeps the weights of frozen encoders beside the parts in 8 bits."""
        for part in self.values():
            part.quantize_frozen_()

    def unload(self) -> None:
        """Lets go of what takes memory and is read again in no time."""
        for part in self.values():
            part.unload()

    def input_ids(self) -> list[str]:
        """The ids of an item that a part looks at."""
        others: list[Any] = [id for part in self.values() for id in (part.spec.fallback, *part.extra_inputs) if id]
        return list(dict.fromkeys([*self, *others]))

    def present_in(self, item: Item) -> set[str]:
        """The parts that an item says something to, under their own id or the one that they fall back on."""
        return {name for name, part in self.items() if name in item or part.spec.fallback in item}

    def prepare(self, items: Sequence[Item], *, frames: int = 0) -> dict[str, PreparedInputs]:
        """Values as CPU tensors, enough of them for clips of `frames` frames."""
        prepared = {}
        for name, part in self.items():
            try:
                here = part.with_max_frames(frames)
                prepared[name] = _prepared(here, items, [here.value_from_item(item, name) for item in items])
            except RequestError as error:
                raise RequestError(f"{name}: {error}") from None
        return prepared

    def crop_values(self, values: Mapping[str, Any], start: float) -> dict[str, Any]:
        """The values of a piece, by ids, for a clip of it that begins at `start` seconds."""
        return {name: _since(self[name], value, start) if name in self else value for name, value in values.items()}

    def save_assets(self, folder: Path) -> dict[str, ConditionerSpec]:
        """The specs to save in `folder`, that of a system, once each part has put there what it needs beside its weights."""
        return {name: part.save_assets(folder, f"conditioners/{quote(name, safe='')}") for name, part in self.items()}

    def augment(self, prepared: Mapping[str, PreparedInputs], rng: torch.Generator) -> dict[str, PreparedInputs]:
        """What a training step sees in place of the prepared values."""
        varied = {name: self[name].augment(values, rng) for name, values in prepared.items()}
        return {name: replace(values, spans=prepared[name].spans) for name, values in varied.items()}

    def encode(self, prepared: Mapping[str, PreparedInputs]) -> dict[str, PreparedInputs]:
        found = {name: self[name].encode(values) for name, values in prepared.items()}
        return {name: replace(values, spans=prepared[name].spans) for name, values in found.items()}

    def forward(self, features: Mapping[str, PreparedInputs]) -> dict[str, Condition]:
        return {name: _together(self[name](values), values.spans) for name, values in features.items()}


def _changing(part: Conditioner[Any], value: Any) -> Timeline | None:
    """The timeline that a value is, unless the part reads such values itself."""
    return None if part.handles_timelines else Timeline.parse(value)


def _since(part: Conditioner[Any], value: Any, start: Any) -> Any:
    """A value of a piece for a clip that begins at `start` seconds, 0 where that is no number."""
    if value is None or not isinstance(start, Real) or start == 0:
        return value
    line = _changing(part, value)
    return part.crop_value(value, float(start)) if line is None else line.shifted(float(start))


def _each(part: Conditioner[Any], values: Iterable[Any]) -> Iterator[Any]:
    """The values, and in place of those that change what they change between."""
    for value in values:
        line = _changing(part, value)
        yield from [value] if line is None else [span.value for span in line.spans]


def _prepared(part: Conditioner[Any], items: Sequence[Item], values: Sequence[Any]) -> PreparedInputs:
    """The values of items; those that change over time as so many values, timed from the start of the clip.

    Their seconds are those of the piece of which the clip is a part from `seconds_start` on, 0 if the item has none.
    """
    values = [_since(part, value, item.get("seconds_start")) for item, value in zip(items, values, strict=True)]
    lines = [_changing(part, value) for value in values]
    if not any(lines):
        return part.prepare(values)
    always = (-math.inf, math.inf, 0.0, 0.0)
    rows: list[list[tuple[float, ...]]] = []
    each: list[list[Any]] = []
    for value, line in zip(values, lines, strict=True):
        rows.append([always] if line is None else [*line.bounds_with_fades()])
        each.append([value] if line is None else [span.value for span in line.spans])
    most = max(map(len, rows))
    prepared = part.prepare([value for own in each for value in [*own, *[None] * (most - len(own))]])
    return replace(prepared, spans=torch.tensor([[*own, *[(0.0,) * 4] * (most - len(own))] for own in rows]))


def _together(condition: Condition, spans: Float[Tensor, "i s 4"] | None) -> Condition:
    """The condition of items whose spans stand in rows of their own: one after another."""
    if spans is None:
        return condition
    items, count = spans.shape[:2]
    return replace(
        condition,
        embeddings=condition.embeddings.reshape(items, -1, condition.embeddings.shape[-1]),
        mask=condition.mask.reshape(items, -1),
        present=condition.present.view(items, count).any(1),
        spans=spans,
    )
