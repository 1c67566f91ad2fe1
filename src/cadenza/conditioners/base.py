"""Conditioners turn values of one item id into one Condition, in three steps: prepare, encode and forward.

`prepare` (hook `preprocess`) checks, tokenizes, loads and resamples values on the CPU, in data workers. `encode` (hook
`encode_frozen`) runs frozen encoders without gradient; its result may be cached. `forward` (hook `project`) is trained.
A new conditioner needs only `preprocess` and `project`. A value of None means absent.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar
from urllib.parse import quote

import torch
from jaxtyping import Bool, Float
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from cadenza.codecs.base import Codec, CodecSpec
from cadenza.core.errors import RequestError
from cadenza.core.spec import RegisteredSpec
from cadenza.core.timeline import Timeline
from cadenza.core.types import Condition, ConditionKind, Latents, MaskedSequence
from cadenza.nn.frozen import FrozenEncoderMixin

Value = TypeVar("Value")
Item = Mapping[str, Any]
# an empty text is absent, or encoded; YAML parses an unquoted null as None
EmptyText = Annotated[Literal["null", "encode"], BeforeValidator(lambda value: "null" if value is None else value)]
_TOKENS_OF_A_TEXT = 16  # estimate


class ConditionerSpec(RegisteredSpec):
    """Base spec of all conditioners."""

    family: ClassVar[str] = "cadenza.conditioners"
    widget: ClassVar[str] = "text"  # form control: text, number, choice, audio, ...
    output_dim: int
    null_embedding: Literal["zeros", "learned"] = "learned"  # embedding of an absent value: none, or one trained position
    fallback: str | None = None  # item id whose value is used if the item has none under this conditioner's id

    @property
    def output_kind(self) -> ConditionKind:
        """Kind of the output: one `vector`, `tokens`, or `frames` aligned with the clip."""
        raise NotImplementedError(f"{type(self).__name__} must define `output_kind`")

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
        return self


class FramewiseConditionerSpec(ConditionerSpec):
    """Spec of a conditioner that returns one vector per frame, usually at the codec's frame rate."""

    frame_rate: float = Field(gt=0)  # Hz
    max_frames: int = Field(ge=1)  # of the longest training clip; shorter clips use the first frames

    @property
    def output_kind(self) -> ConditionKind:
        return "frames"


class CodecConditionerSpec(ConditionerSpec):
    """Spec of a conditioner on audio at the sample rate of a frozen `codec`, which is saved with the system.

    Before training the codec loads its weights from `model`, a saved system with the same codec. With
    `input_kind: frames` values are frames of the codec, and the conditioner holds no codec.
    """

    codec: CodecSpec
    model: str | None = None
    input_kind: Literal["audio", "frames"] = "audio"

    @model_validator(mode="after")
    def _check_codec_frames(self) -> Self:
        if self.codec.uses_chunks:
            raise ValueError("codec: its frames belong to overlapping chunks. Expected consecutive frames. Use another codec.")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "frames"

    @property
    def sample_rate(self) -> int:
        """Sample rate of the codec in Hz."""
        return self.codec.sample_rate

    @property
    def hop(self) -> int:
        """Samples per frame of the codec."""
        return self.codec.hop_length


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
    uncached_inputs: ClassVar[tuple[str, ...]] = ()  # prepared tensors that `encode` returns unchanged
    null: Tensor | None  # [1, d]

    def __init__(self, spec: ConditionerSpec) -> None:
        super().__init__()
        self.spec: Any = spec
        self.null = nn.Parameter(torch.zeros(1, spec.output_dim)) if spec.null_embedding == "learned" else None

    def prepare_training(self, values: Iterable[Value | None]) -> None:
        """Initialize what depends on training values, such as a vocabulary, and load pretrained encoders.

        Raises CheckpointError if an encoder is missing. Default: nothing.
        """

    def quantize_frozen_(self) -> None:
        """Keep the weights of pretrained encoders in 8 bits from now on. Default: no encoder."""

    def unload(self) -> None:
        """Unload encoders that are cheap to reload. Default: nothing to unload."""

    def unloaded_bytes(self) -> int:
        """Bytes of pretrained encoders that are not loaded yet (they load on first use and are not in the checkpoint)."""
        return 0

    def peak_loading_bytes(self) -> int:
        """Peak memory in bytes while these encoders load."""
        return 0

    def is_cacheable(self, prepared: PreparedInputs) -> bool:
        """Whether a cache should look up the result of `encode` for these inputs."""
        return True

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        """Copy files that are neither in the spec nor in the weights, and return the spec to save.

        Files such as a local encoder are copied to `folder/subfolder` and named `./subfolder` in the returned spec, which
        `ConditionerSpec.resolve_paths` makes absolute on loading. `folder` is that of the system.
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

    def with_max_frames(self, frames: int) -> "Conditioner[Value]":
        """Return a conditioner for clips of `frames` frames that shares the weights; self if `max_frames` suffices."""
        longest = getattr(self.spec, "max_frames", None)
        if longest is None or frames <= longest:
            return self
        longer = copy(self)
        longer.spec = self.spec.model_copy(update={"max_frames": frames})
        return longer

    def prepare(self, values: Sequence[Value | None]) -> PreparedInputs:
        """Return CPU tensors of a batch of values, with None for absent ones; raises RequestError for an invalid value."""
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
    """Look up one trained vector per value; subclasses define `row`.

    The table has `num_rows` rows with standard deviation `spec.std` before training.
    """

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


class CodecConditioner(Conditioner[Value]):
    """Base class of conditioners with a frozen codec, or None if unused; their specs have `codec` and `model`."""

    codec: Codec | None

    def prepare_training(self, values: Iterable[Value | None]) -> None:
        """Load the codec from `spec.model`; warns if that is not set."""
        if self.codec is None:
            return
        if self.spec.model is None:
            warnings.warn(
                f"the codec of a `{self.spec.type}` conditioner has random weights and is frozen; set `model` to load "
                "pretrained weights",
                stacklevel=2,
            )
        else:
            self.codec.load_weights_from(self.spec.model)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return what features depend on in addition to the spec: the weights of the codec; None without a codec."""
        return None if self.codec is None else ({}, self.codec.state_dict())

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        return self.spec.model_copy(update={"model": None})  # the system's checkpoint holds the codec


class PretrainedConditionerSpec(ConditionerSpec):
    """Spec of a conditioner with a pretrained encoder `model`, a folder or a repository of the hub.

    Unless it is to `train`, the encoder is frozen and not part of the saved weights: a saved system names its revision, or
    holds a copy of a local folder.
    """

    model: str = Field(min_length=1)
    revision: str | None = None  # commit, branch or tag of the repository
    dim: int | None = Field(default=None, ge=1)  # width of the encoder; default: from its config
    train: bool = False
    pad_to: Literal["longest", "max_length"] = "longest"
    empty_text: EmptyText = "null"
    project: Literal["always", "auto"] = "always"  # auto: only if the encoder's width differs from output_dim

    def resolve_paths(self, folder: Path) -> Self:
        return self.model_copy(update={"model": str(folder / self.model)}) if self.model.startswith("./") else self


class PretrainedConditioner(FrozenEncoderMixin, Conditioner[Value]):
    """Base class of conditioners with a pretrained encoder, which is `encoder` if it is trained.

    `pretrained` has `dim`, `config`, `source`, `build`, `get` and `save(folder, weights=)`.
    """

    dtype_ref: Tensor  # empty; has this module's device and dtype

    def _add_projection(self) -> None:
        """Add the output projection, and the encoder if it is trained."""
        self.out = output_projection(self.spec, self.pretrained.dim)
        self.register_buffer("dtype_ref", torch.empty(0), persistent=False)
        if self.spec.train:
            self.encoder = self.pretrained.build().requires_grad_(True)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return config and weights of the encoder, on which features depend; None if it is trained."""
        return None if self.spec.train else (self.pretrained.config, self.pretrained.get(self.dtype_ref.device).state_dict())

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        source, fields = self.pretrained.source, {"dim": self.pretrained.dim}
        if source.folder is None and not self.spec.train:
            return self.spec.model_copy(update=fields | {"revision": source.resolved_revision})
        self.pretrained.save(folder / subfolder, weights=not self.spec.train)
        return self.spec.model_copy(update=fields | {"model": f"./{subfolder}", "revision": None})


class ConditionerSet(nn.ModuleDict):
    """Conditioners by item id, with the three steps for a batch of items."""

    if TYPE_CHECKING:  # nn.ModuleDict types its values as Module

        def __getitem__(self, key: str) -> Conditioner[Any]: ...
        def items(self) -> ItemsView[str, Conditioner[Any]]: ...
        def values(self) -> ValuesView[Conditioner[Any]]: ...

    def prepare_training(self, items: Iterable[Item]) -> None:
        """Call `prepare_training` of each conditioner with its values; `items` is iterated once per conditioner."""
        for name, part in self.items():
            part.prepare_training(_span_values(part, (item.get(name) for item in items)))

    def quantize_frozen_(self) -> None:
        """Keep the weights of all pretrained encoders in 8 bits from now on."""
        for part in self.values():
            part.quantize_frozen_()

    def unload(self) -> None:
        """Unload all encoders that are cheap to reload."""
        for part in self.values():
            part.unload()

    def input_ids(self) -> list[str]:
        """Return the item ids that the conditioners use, including fallbacks and extra inputs."""
        others: list[Any] = [id for part in self.values() for id in (part.spec.fallback, *part.extra_inputs) if id]
        return list(dict.fromkeys([*self, *others]))

    def present_in(self, item: Item) -> set[str]:
        """Return the ids of the conditioners for which the item has a value, by their id or their fallback."""
        return {name for name, part in self.items() if name in item or part.spec.fallback in item}

    def prepare(self, items: Sequence[Item], *, frames: int = 0) -> dict[str, PreparedInputs]:
        """Return CPU tensors by conditioner id for clips of up to `frames` frames.

        Raises RequestError, which names the conditioner, for an invalid value.
        """
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


def _span_values(part: Conditioner[Any], values: Iterable[Any]) -> Iterator[Any]:
    """Yield all values, with the values of its spans for each timeline."""
    for value in values:
        timeline = _timeline(part, value)
        yield from [value] if timeline is None else [span.value for span in timeline.spans]


def _prepare_items(part: Conditioner[Any], items: Sequence[Item], values: Sequence[Any]) -> PreparedInputs:
    """Prepare the values of items; each timeline becomes one row per span, padded with absent rows.

    Times of values are seconds of the piece, of which the clip begins at the item's `seconds_start` (default 0).
    """
    values = [_crop(part, value, item.get("seconds_start")) for item, value in zip(items, values, strict=True)]
    timelines = [_timeline(part, value) for value in values]
    if not any(timelines):
        return part.prepare(values)
    bounds: list[list[tuple[float, ...]]] = []
    rows: list[list[Any]] = []
    for value, timeline in zip(values, timelines, strict=True):
        bounds.append([(-math.inf, math.inf, 0.0, 0.0)] if timeline is None else [*timeline.bounds_with_fades()])
        rows.append([value] if timeline is None else [span.value for span in timeline.spans])
    count = max(map(len, rows))
    prepared = part.prepare([value for row in rows for value in [*row, *[None] * (count - len(row))]])
    return replace(prepared, spans=torch.tensor([[*row, *[(0.0,) * 4] * (count - len(row))] for row in bounds]))


def _concat_spans(condition: Condition, spans: Float[Tensor, "i s 4"] | None) -> Condition:
    """Concatenate the rows of each item's spans: [i * s, n, d] becomes [i, s * n, d]."""
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


def output_projection(spec: Any, dim: int) -> nn.Module:
    """Return the linear layer from `dim` to `spec.output_dim`; identity with `project: auto` if the widths are equal."""
    if spec.project == "auto" and dim == spec.output_dim:
        return nn.Identity()
    return nn.Linear(dim, spec.output_dim)


def require_text(value: Any) -> str:
    """Return the value if it is a string; raises RequestError otherwise."""
    if not isinstance(value, str):
        raise RequestError(f"a text is needed, got {value!r} ({type(value).__name__}); put it in quotes")
    return value


def warn_truncated(count: int, longest: int, unit: str = "tokens") -> None:
    """Warn that a text of `count` tokens or phonemes is truncated to `longest`."""
    warnings.warn(
        f"a text has {count} {unit}, {longest} are read (`max_length` of its conditioner): the last {count - longest} are lost",
        stacklevel=3,
    )


def pad_ids(rows: Sequence[Sequence[int]], *, pad: int = 0, length: int | None = None) -> dict[str, Tensor]:
    """Pad rows of ids to `ids` and `mask` [b, n]; `n` is `length`, or that of the longest row and at least 1."""
    n = max([1, *map(len, rows)]) if length is None else length
    ids = torch.full((len(rows), n), pad)
    for row, line in zip(rows, ids, strict=True):
        line[: len(row)] = torch.tensor(row, dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return {"ids": ids, "mask": torch.arange(n) < lengths[:, None]}


def codec_width(codec: CodecSpec) -> int:
    """Return the numbers per frame of a codec."""
    with torch.device("meta"):
        return codec.build().embedding_dim


def codec_frames(value: Any, dim: int) -> Float[Tensor, "f d"]:
    """Return precomputed codec frames, given as Latents of one clip or [d, f]; raises RequestError for other values."""
    z = value.z[0, :, : int(value.lengths)] if isinstance(value, Latents) and len(value) == 1 else value
    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[0] != dim or not z.shape[1] or not bool(z.isfinite().all()):
        received = f"a tensor {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise RequestError(f"finite frames of a codec are needed, Latents of one clip or a tensor [{dim}, f], got {received}")
    return z.float().cpu().T


def example_codec() -> CodecSpec:
    """Return a tiny codec for `example` of specs."""
    fields = {"sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
    return CodecSpec.parse({"type": "encodec", **fields})
