"""Conditioners turn values of one item id into one Condition, in three steps: prepare, encode and forward.

`prepare` (hook `preprocess`) checks, tokenizes, loads and resamples values on the CPU, in data workers. `encode` (hook
`encode_frozen`) runs frozen encoders without gradient; its result may be cached. `forward` (hook `project`) is trained.
A new conditioner needs only `preprocess` and `project`. A value of None means absent.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import ItemsView, Iterable, Mapping, Sequence, ValuesView
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeGuard, TypeVar
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from cadenza.core.errors import RequestError
from cadenza.core.spec import RegisteredSpec
from cadenza.core.timeline import Timeline, TimeSpan
from cadenza.core.types import Condition, ConditionKind, MaskedSequence

if TYPE_CHECKING:
    from cadenza.nn.frozen import FrozenEncoder

Value = TypeVar("Value")
Item = Mapping[str, Any]
# an empty text is absent, or encoded; YAML parses an unquoted null as None
EmptyText = Annotated[Literal["null", "encode"], BeforeValidator(lambda value: "null" if value is None else value)]
_TOKENS_OF_A_TEXT = 16  # estimate
_ENDLESS = (-math.inf, math.inf, 0.0, 0.0)  # bounds and fades of a constant value


class ConditionerSpec(RegisteredSpec):
    """Base spec of all conditioners."""

    family: ClassVar[str] = "cadenza.conditioners"
    widget: ClassVar[str] = "text"  # form control: text, number, choice, audio, ...
    output_kind: ClassVar[ConditionKind]  # one `vector`, `tokens`, or `frames` aligned with the clip; may be a property
    path_fields: ClassVar[tuple[str, ...]] = ()  # fields that name a folder or a repository
    output_dim: int
    null_embedding: Literal["zeros", "learned"] = "learned"  # embedding of an absent value: none, or one trained position
    fallback: str | None = None  # item id whose value is used if the item has none under this conditioner's id

    def num_tokens(self, frames: int) -> int:
        """Return the number of vectors per value for clips of `frames` frames; an estimate for texts."""
        return {"vector": 1, "tokens": _TOKENS_OF_A_TEXT, "frames": frames}[self.output_kind]

    @classmethod
    def example(cls) -> tuple["ConditionerSpec", list[Any]]:
        """Return a tiny spec and two or more different values; nothing is downloaded."""
        raise NotImplementedError(f"{cls.__name__} must define `example`")

    def build(self) -> "Conditioner[Any]":
        """Return a conditioner with new weights."""
        raise NotImplementedError(f"{type(self).__name__} must define `build`")

    def resolve_paths(self, folder: Path) -> Self:
        """Return the spec with paths `./x`, written by `Conditioner.save_assets`, relative to the system's `folder`."""
        paths = {name: getattr(self, name) for name in self.path_fields}
        return self.model_copy(update={name: str(folder / path) for name, path in paths.items() if str(path).startswith("./")})


class RangeConditionerSpec(ConditionerSpec):
    """Spec of numbers from `min` to `max`."""

    widget: ClassVar[str] = "number"
    min: Any
    max: Any

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) must be below max ({self.max:g})")
        return self

    def clamp(self, value: float, outside: Literal["clamp", "error"] = "clamp") -> float:
        """Return a number moved into the range with a warning; with `outside: error` RequestError is raised."""
        if not self.min <= value <= self.max:
            limits = f"{value:g} is outside the range from {self.min:g} to {self.max:g}"
            if outside == "error":
                raise RequestError(f"{limits} that the model was trained on")
            warnings.warn(f"{limits}: the nearest end is used", stacklevel=2)
        return min(max(float(value), self.min), self.max)


class FramewiseConditionerSpec(ConditionerSpec):
    """Spec of a conditioner that returns one vector per frame, usually at the codec's frame rate."""

    output_kind: ClassVar[ConditionKind] = "frames"
    frame_rate: float = Field(gt=0)  # Hz
    max_frames: int = Field(ge=1)  # of the longest training clip; shorter clips use the first frames

    @property
    def frame_centers(self) -> np.ndarray:
        """Time of the center of each frame in seconds [f]."""
        return (np.arange(self.max_frames) + 0.5) / self.frame_rate


@dataclass(frozen=True)
class PreparedInputs:
    """Tensors of a batch of values; `present` [b] is False for absent ones.

    If values change over time, each item has `s` rows, one per span, and `spans` [i, s, 4] holds their times as in `Condition`.
    """

    tensors: dict[str, Tensor]
    present: Bool[Tensor, " b"]
    spans: Float[Tensor, "i s 4"] | None = None

    def to(self, device: torch.device | str) -> "PreparedInputs":
        """Return the inputs on a device."""
        spans = None if self.spans is None else self.spans.to(device)
        return PreparedInputs({name: x.to(device) for name, x in self.tensors.items()}, self.present.to(device), spans)


class Conditioner(nn.Module, ABC, Generic[Value]):
    """Base class: subclasses define `placeholder`, `preprocess` and `project`, and `encode_frozen` for a frozen encoder."""

    handles_timelines: ClassVar[bool] = False  # `preprocess` parses lists of (start, end, value) itself
    placeholder: Value  # replaces None before `preprocess`; its output is masked
    extra_inputs: ClassVar[tuple[str, ...]] = ()  # other item ids that `value_from_item` uses
    padding_masks: Mapping[str, str] = {}  # for the feature cache: mask or lengths of each tensor that is padded
    uncached_inputs: ClassVar[tuple[str, ...]] = ()  # prepared tensors that `encode` returns unchanged
    frozen_encoder: "FrozenEncoder[Any] | None" = None  # pretrained encoder that is not part of the weights
    null: Tensor | None  # [1, d]
    dtype_ref: Tensor  # empty; has this module's device and dtype

    def __init__(self, spec: ConditionerSpec) -> None:
        super().__init__()
        self.spec: Any = spec
        self.null = nn.Parameter(torch.zeros(1, spec.output_dim)) if spec.null_embedding == "learned" else None
        self.register_buffer("dtype_ref", torch.empty(0), persistent=False)

    def prepare_training(self, values: Iterable[Value | None]) -> None:
        """Learn a vocabulary or codebooks from values, and load pretrained encoders, or raise CheckpointError."""

    def is_cacheable(self, prepared: PreparedInputs) -> bool:
        """Whether a cache should look up the result of `encode` for these inputs."""
        return True

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return settings and weights on which `encode` depends in addition to the spec. Default: None, nothing to cache."""
        return None

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        """Copy files that are neither in the spec nor in the weights, and return the spec to save.

        The copy is `subfolder` of the system's `folder`, and `./subfolder` in the spec; see `ConditionerSpec.resolve_paths`.
        """
        return self.spec

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """Return the inputs augmented for a training step; `rng` is a CPU generator. Default: unchanged."""
        return prepared

    def value_from_item(self, item: Item, name: str) -> Value | None:
        """Return the value of this conditioner, whose id is `name`, or of its `fallback`; None if absent."""
        value = item.get(name)
        return item.get(self.spec.fallback) if value is None and self.spec.fallback is not None else value

    def crop_value(self, value: Value, start: float) -> Value | None:
        """Return the value for a clip that begins `start` seconds into its piece. Default: unchanged."""
        return value

    def with_max_frames(self, frames: int) -> Self:
        """Return a conditioner for clips of `frames` frames that shares the weights; self if `max_frames` suffices."""
        longest = getattr(self.spec, "max_frames", None)
        if longest is None or frames <= longest:
            return self
        longer = copy(self)
        longer.spec = self.spec.model_copy(update={"max_frames": frames})
        return longer

    def prepare(self, values: Sequence[Value | None]) -> PreparedInputs:
        """Return CPU tensors of a batch of values, with None for absent ones; raises RequestError for an invalid value."""
        values = self.parse_values(values)
        present = torch.tensor([value is not None for value in values])
        return PreparedInputs(self.preprocess([self.placeholder if value is None else value for value in values]), present)

    @torch.no_grad()
    def encode(self, prepared: PreparedInputs) -> PreparedInputs:
        """Run frozen encoders on the prepared inputs; without encoders the inputs are returned."""
        return PreparedInputs(self.encode_frozen(prepared.tensors), prepared.present)

    def forward(self, features: PreparedInputs) -> Condition:
        """Project encoded inputs to embeddings [b, n, output_dim] with a mask [b, n] that is False for absent values."""
        tokens = self.project(features.tensors)
        return Condition(tokens.x, tokens.mask & features.present[:, None], features.present, self.null)

    def parse_values(self, values: Sequence[Any]) -> Sequence[Value | None]:
        """Return the values that `preprocess` takes, with None for absent ones, such as blank texts. Default: unchanged."""
        return values

    @abstractmethod
    def preprocess(self, values: Sequence[Value]) -> dict[str, Tensor]:
        """Return CPU tensors of a batch of values; raises RequestError for an invalid value."""

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return features of the tensors of `preprocess`, on their device. Default: unchanged."""
        return tensors

    @abstractmethod
    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        """Return embeddings `x` [b, n, output_dim] and their `mask` [b, n]; the trained part of the conditioner."""


class EmbeddingTableConditioner(Conditioner[Value]):
    """Look up one trained vector per value, of standard deviation `spec.std` before training; subclasses define `row`."""

    def __init__(self, spec: ConditionerSpec, num_rows: int) -> None:
        super().__init__(spec)
        self.table = nn.Embedding(num_rows, spec.output_dim)
        nn.init.normal_(self.table.weight, std=self.spec.std)

    @abstractmethod
    def row(self, value: Any) -> int:
        """Return the row of a value; raises RequestError for an invalid value."""

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return {"row": torch.tensor([self.row(value) for value in values], dtype=torch.long)}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        row = tensors["row"][:, None]
        return MaskedSequence(self.table(row), torch.ones_like(row, dtype=torch.bool))


class ProjectionConditioner(Conditioner[Value]):
    """Project `x` [b, n, e] to embeddings with the layer `out`; padding is exactly zero."""

    def add_projection(self, dim: int) -> None:
        """Add `out`, a linear layer from `dim`; with `project: auto` the identity if the widths are equal."""
        equal = self.spec.project == "auto" and dim == self.spec.output_dim
        self.out = nn.Identity() if equal else nn.Linear(dim, self.spec.output_dim)

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        return MaskedSequence(self.out(tensors["x"].to(self.dtype_ref.dtype)) * mask[..., None], mask)


class SpanConditioner(Conditioner[Any]):
    """Base class of conditioners on lists of (start, end, value) in seconds with vectors per frame; subclasses check spans."""

    handles_timelines: ClassVar[bool] = True

    @abstractmethod
    def parse_span(self, entry: Any) -> TimeSpan:
        """Return a (start, end, value) of a list; raises RequestError for other entries."""

    def value_from_item(self, item: Item, name: str) -> Any:
        """Return the value; an empty list is None."""
        value = super().value_from_item(item, name)
        return None if isinstance(value, list | tuple) and not value else value

    def crop_value(self, value: Any, start: float) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [TimeSpan(max(0.0, a - start), b - start, x) for a, b, x in map(self.parse_span, value) if b > start] or None

    def span_frames(self, span: TimeSpan) -> slice:
        """Return the frames whose centers lie in a span."""
        limit, rate = self.spec.max_frames, self.spec.frame_rate
        return slice(*(round(min(max(0, second * rate), limit)) for second in span[:2]))

    def span_times(self, span: TimeSpan, longest: float) -> np.ndarray:
        """Return seconds since the start and until the end of a span [2, f] at its frames; 1 stands for `longest` or more."""
        centers = self.spec.frame_centers[self.span_frames(span)]
        return np.clip(np.stack([centers - span.start, span.end - centers]) / longest, 0, 1)


class ConditionerSet(nn.ModuleDict):
    """Conditioners by item id, with the three steps for a batch of items."""

    if TYPE_CHECKING:  # nn.ModuleDict types its values as Module

        def __getitem__(self, key: str) -> Conditioner[Any]: ...
        def items(self) -> ItemsView[str, Conditioner[Any]]: ...
        def values(self) -> ValuesView[Conditioner[Any]]: ...

    def prepare_training(self, items: Iterable[Item]) -> None:
        """Call `prepare_training` of each conditioner with its values; `items` is iterated once per conditioner."""
        for name, part in self.items():
            part.prepare_training(value for item in items for value in _split_spans(part, item.get(name))[1])

    def frozen_encoders(self) -> dict[str, "FrozenEncoder[Any]"]:
        """Return the pretrained encoders that are not part of the weights, by conditioner id."""
        return {name: part.frozen_encoder for name, part in self.items() if part.frozen_encoder is not None}

    def quantize_frozen_(self) -> None:
        """Keep the weights of all frozen encoders in 8 bits from now on."""
        for encoder in self.frozen_encoders().values():
            encoder.quantized = True

    def unload(self) -> None:
        """Unload all frozen encoders that are cheap to reload."""
        for encoder in self.frozen_encoders().values():
            encoder.unload()

    def input_ids(self) -> list[str]:
        """Return the item ids that the conditioners use, including fallbacks and extra inputs."""
        others: list[Any] = [id for part in self.values() for id in (part.spec.fallback, *part.extra_inputs) if id]
        return list(dict.fromkeys([*self, *others]))

    def present_in(self, item: Item) -> set[str]:
        """Return the ids of the conditioners for which the item has a value, by their id or their fallback."""
        return {name for name, part in self.items() if name in item or part.spec.fallback in item}

    def prepare(self, items: Sequence[Item], *, frames: int = 0) -> dict[str, PreparedInputs]:
        """Return CPU tensors by conditioner id for clips of up to `frames` frames; RequestError for an invalid value."""
        prepared = {}
        for name, part in self.items():
            try:
                longer = part.with_max_frames(frames)
                prepared[name] = _prepare_items(longer, items, [longer.value_from_item(item, name) for item in items])
            except RequestError as error:
                raise RequestError(f"{name}: {error}") from None
        return prepared

    def crop_values(self, values: Mapping[str, Any], start: float) -> dict[str, Any]:
        """Return the values of a piece for a clip that begins at `start` seconds."""
        return {name: _crop(self[name], value, start) if name in self else value for name, value in values.items()}

    def save_assets(self, folder: Path) -> dict[str, ConditionerSpec]:
        """Copy files of all conditioners to the system's `folder` and return the specs to save."""
        return {name: part.save_assets(folder, f"conditioners/{quote(name, safe='')}") for name, part in self.items()}

    def augment(self, prepared: Mapping[str, PreparedInputs], rng: torch.Generator) -> dict[str, PreparedInputs]:
        """Return all inputs augmented for a training step."""
        return {name: replace(self[name].augment(inputs, rng), spans=inputs.spans) for name, inputs in prepared.items()}

    def encode(self, prepared: Mapping[str, PreparedInputs]) -> dict[str, PreparedInputs]:
        """Run the frozen encoders of all conditioners."""
        return {name: replace(self[name].encode(inputs), spans=inputs.spans) for name, inputs in prepared.items()}

    def forward(self, features: Mapping[str, PreparedInputs]) -> dict[str, Condition]:
        """Project all encoded inputs; the rows of one item's spans are concatenated along the tokens."""
        return {name: _concat_spans(self[name](inputs), inputs.spans) for name, inputs in features.items()}


def _timeline(part: Conditioner[Any], value: Any) -> Timeline | None:
    """Return the value as a timeline; None if it is constant or if the conditioner handles timelines itself."""
    constant = part.handles_timelines or value is None or isinstance(value, str)
    return None if constant else Timeline.parse(value)


def _crop(part: Conditioner[Any], value: Any, start: Any) -> Any:
    """Return the value for a clip that begins at `start` seconds; a `start` that is not a number counts as 0."""
    if value is None or not isinstance(start, Real) or start == 0:
        return value
    timeline = _timeline(part, value)
    return part.crop_value(value, float(start)) if timeline is None else timeline.shifted(float(start))


def _split_spans(part: Conditioner[Any], value: Any) -> tuple[list[tuple[float, ...]], list[Any]]:
    """Return bounds with fades and the value of each span of a timeline; one endless span for a constant value."""
    timeline = _timeline(part, value)
    if timeline is None:
        return [_ENDLESS], [value]
    return [*timeline.bounds_with_fades()], [span.value for span in timeline.spans]


def _prepare_items(part: Conditioner[Any], items: Sequence[Item], values: Sequence[Any]) -> PreparedInputs:
    """Prepare values of items whose clips begin at `seconds_start`; a timeline becomes one row per span, others absent."""
    values = [_crop(part, value, item.get("seconds_start")) for item, value in zip(items, values, strict=True)]
    split = [_split_spans(part, value) for value in values]
    if all(bounds == [_ENDLESS] for bounds, _ in split):
        return part.prepare(values)
    count = max(len(bounds) for bounds, _ in split)
    prepared = part.prepare([value for _, row in split for value in [*row, *[None] * (count - len(row))]])
    return replace(prepared, spans=torch.tensor([[*row, *[(0.0,) * 4] * (count - len(row))] for row, _ in split]))


def _concat_spans(condition: Condition, spans: Float[Tensor, "i s 4"] | None) -> Condition:
    """Concatenate the rows of each item's spans: [i * s, n, d] becomes [i, s * n, d]."""
    if spans is None:
        return condition
    (items, count), x = spans.shape[:2], condition.embeddings
    mask, present = condition.mask.reshape(items, -1), condition.present.view(items, count).any(1)
    return Condition(x.reshape(items, -1, x.shape[-1]), mask, present, condition.null_embedding, spans)


def parse_number(value: Any, needed: str) -> float:
    """Return a finite number or one in a tensor; raises RequestError, which names what is `needed`, for other values."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not is_number(number):
        raise RequestError(f"{needed} is needed, got {number!r}")
    return float(number)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def zero_linear(dim: int, output_dim: int) -> nn.Linear:
    """Return a linear layer whose output is zero before training."""
    linear = nn.Linear(dim, output_dim)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def present_text(value: Any, empty_text: Literal["null", "encode"] = "null") -> str | None:
    """Return a text, or None if it is absent or, unless `empty_text` is encode, blank; RequestError for other values."""
    if not isinstance(value, str | None):
        raise RequestError(f"a text is needed, got {value!r} ({type(value).__name__}); put it in quotes")
    return value if value is not None and (value.strip() or empty_text == "encode") else None


def warn_truncated(count: int, longest: int, unit: str = "tokens") -> None:
    """Warn that a text of `count` tokens or phonemes is truncated to `longest`."""
    limit = f"{longest} are read (`max_length` of its conditioner)"
    warnings.warn(f"a text has {count} {unit}, {limit}: the last {count - longest} are lost", stacklevel=3)


def pad_ids(rows: Sequence[Sequence[int]], *, pad: int = 0, length: int | None = None) -> dict[str, Tensor]:
    """Pad rows of ids to `ids` and `mask` [b, n]; `n` is `length`, or that of the longest row and at least 1."""
    ids, mask = pad_rows([torch.tensor(row, dtype=torch.long) for row in rows], pad=pad, shortest=length or 1)
    return {"ids": ids, "mask": mask}


def pad_rows(rows: Sequence[Tensor], *, pad: int = 0, shortest: int = 0) -> tuple[Tensor, Bool[Tensor, "b n"]]:
    """Stack rows [n, ...], padded to the longest and at least to `shortest`; also return the mask of real entries."""
    x = rows[0].new_full((len(rows), max([shortest, *map(len, rows)]), *rows[0].shape[1:]), pad)
    for padded, row in zip(x, rows, strict=True):
        padded[: len(row)] = row
    return x, torch.arange(x.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
