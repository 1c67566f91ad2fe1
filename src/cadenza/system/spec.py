"""SystemSpec: the parts of a system, and checks that they fit together."""

import warnings
from collections.abc import Collection, Iterator
from math import isclose
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import ConditionerSpec, FramewiseConditionerSpec
from cadenza.core.errors import SpecError
from cadenza.core.migrations import FORMAT, migrate_spec
from cadenza.core.spec import Spec, did_you_mean
from cadenza.core.types import Slot
from cadenza.generators.base import GeneratorSpec
from cadenza.samplers.guidance import Guidance, GuidanceTerm, expand_guidance
from cadenza.system.prompt_patterns import PromptPattern

SLOT_KINDS = {  # kinds of conditions that each slot accepts
    "cross": ("vector", "tokens", "frames"),
    "prepend": ("vector", "tokens", "frames"),
    "add": ("vector", "frames"),
    "concat": ("vector", "frames"),
    "global": ("vector",),
}


class Route(Spec):
    """Use of a conditioner in a slot; an id alone stands for the defaults."""

    id: str
    resize: Literal["linear", "nearest", "cut"] | None = None  # `add`, `concat`: how to resize to the frames of the clip
    align: Literal["frames", "steps"] = "frames"  # `add`: to the frame that a step predicts, or interpolated over all steps
    guided: bool = True  # whether branches and dropout of guidance leave it out

    @model_validator(mode="before")
    @classmethod
    def _from_id(cls, data: Any) -> Any:
        return {"id": data} if isinstance(data, str) else data


class FusionSpec(Spec):
    """Routes of each slot, in order; `ignore` names conditioners that are not used."""

    model_config = ConfigDict(populate_by_name=True)

    cross: tuple[Route, ...] = ()
    prepend: tuple[Route, ...] = ()
    add: tuple[Route, ...] = ()
    concat: tuple[Route, ...] = ()
    glob: tuple[Route, ...] = Field(default=(), alias="global")
    ignore: tuple[str, ...] = ()

    @field_validator("cross", "prepend", "add", "concat", "glob")
    @classmethod
    def _unique(cls, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        names = [route.id for route in routes]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"named twice in one slot: {', '.join(sorted(repeated))}")
        return routes

    def routes_by_slot(self) -> dict[Slot, tuple[Route, ...]]:
        """Return the routes of each slot in use."""
        slots = {slot: getattr(self, "glob" if slot == "global" else slot) for slot in get_args(Slot)}
        return {slot: routes for slot, routes in slots.items() if routes}

    def slot_ids(self) -> list[tuple[Slot, str]]:
        """Return every (slot, id), the keys of a mask of absent values."""
        return [(slot, route.id) for slot, routes in self.routes_by_slot().items() for route in routes]

    def guided_ids(self) -> set[str]:
        """Return the conditioners that guidance leaves out in some slot."""
        return {route.id for routes in self.routes_by_slot().values() for route in routes if route.guided}


class GenerationDefaults(Spec):
    """Values that a request may leave out."""

    seconds: float = Field(default=10.0, gt=0)
    guidance: float = 3.0
    sampling: dict[str, Any] = {}
    stride: float | None = Field(default=None, gt=0)  # seconds between windows of a long clip; None: 0.6 of a window


class SystemSpec(Spec):
    """Spec of a codec alone, or of a codec and a generator with its conditioners."""

    format: int = FORMAT
    codec: CodecSpec
    conditioners: dict[str, ConditionerSpec] = {}
    prompt_patterns: tuple[PromptPattern, ...] = ()  # values that texts may state
    fusion: FusionSpec = FusionSpec.model_validate({})
    generator: GeneratorSpec | None = None
    defaults: GenerationDefaults = GenerationDefaults()

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        return migrate_spec(data) if isinstance(data, dict) and data.get("format") != FORMAT else data

    @model_validator(mode="after")
    def _fit(self) -> "SystemSpec":
        mistakes = [*_name_mistakes(self), *_slot_mistakes(self)]
        if self.generator is not None and (self.codec.uses_chunks or self.codec.has_loudness_scale):
            extra = "overlapping chunks" if self.codec.uses_chunks else "a loudness scale"
            mistakes.append(
                f"generator: cannot generate frames with {extra}, as this codec has; use it alone, or another codec"
            )
        if self.generator is not None and not mistakes:
            try:
                self.generator.validate_inputs(self.codec.frame_format, self.slot_dims())
            except ValueError as error:
                mistakes.append(f"generator: {error}")
            try:
                self.generator.sampling.parse(self.defaults.sampling, source="defaults.sampling")
            except SpecError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ValueError("the parts do not fit: " + "; ".join(mistakes))
        return self

    def guidance_terms(self, guidance: Guidance, present: Collection[str]) -> list[GuidanceTerm]:
        """Return the terms of guidance to evaluate if the conditions `present` have values: at least one."""
        guided = self.fusion.guided_ids()
        terms = expand_guidance(guidance, self.defaults.guidance, guided, guided & {*present})
        needs_unguided = guidance.is_scheduled or guidance.rescale > 0
        return [term for term in terms if term.weight != 0 or (needs_unguided and term.unguided_weight)]

    def slot_dims(self) -> dict[Slot, int]:
        """Return the width of each slot in use: the sum if conditions are concatenated, else the width of all."""
        dims: dict[Slot, list[int]] = {
            slot: [self.conditioners[route.id].output_dim for route in routes]
            for slot, routes in self.fusion.routes_by_slot().items()
        }
        return {slot: sum(each) if slot in ("concat", "global") else each[0] for slot, each in dims.items()}


def _name_mistakes(spec: SystemSpec) -> list[str]:
    """Return the names in `fusion` and `prompt_patterns` that are not conditioners, and conditioners without a use."""
    slot_ids, ignored, known = spec.fusion.slot_ids(), spec.fusion.ignore, list(spec.conditioners)
    named = [(f"fusion.{slot}", name) for slot, name in [*slot_ids, *(("ignore", name) for name in ignored)]]
    named += [("prompt_patterns", name) for pattern in spec.prompt_patterns for name in (pattern.of, pattern.to)]
    mistakes = [
        f"{field} names '{name}', which is not a conditioner.{did_you_mean(name, known)}"
        for field, name in named
        if name not in known
    ]
    mistakes += [
        f"fusion.ignore names '{name}', which fusion.{slot} uses; remove it from one of them"
        for slot, name in slot_ids
        if name in ignored
    ]
    unused = [name for name in known if name not in {*ignored, *(name for _, name in slot_ids)}]
    return mistakes + [
        f"conditioners.{name} goes to no slot; name it in fusion.cross or another slot, or in fusion.ignore" for name in unused
    ]


def _slot_mistakes(spec: SystemSpec) -> list[str]:
    """Return slots that the generator lacks, conditions that do not suit their slot, and widths that differ."""
    mistakes = []
    for slot, routes in spec.fusion.routes_by_slot().items():
        if spec.generator is not None and slot not in spec.generator.slots:
            slots = ", ".join(sorted(spec.generator.slots))
            mistakes.append(f"fusion.{slot}: generator '{spec.generator.type}' has no such slot; it has: {slots}")  # type: ignore[attr-defined]
        parts = {route.id: spec.conditioners[route.id] for route in routes if route.id in spec.conditioners}
        for name, part in parts.items():
            if part.output_kind not in SLOT_KINDS[slot]:
                suitable = ", ".join(other for other, kinds in SLOT_KINDS.items() if part.output_kind in kinds)
                mistakes.append(f"fusion.{slot}: '{name}' gives {part.output_kind}; that fits: {suitable}")
        widths = {name: part.output_dim for name, part in parts.items()}
        if slot not in ("concat", "global") and len(set(widths.values())) > 1:
            mistakes.append(f"fusion.{slot}: widths must be equal, but they are {widths}")
        mistakes += [mistake for route in routes for mistake in _length_mistakes(spec, slot, route)]
    return mistakes


def _length_mistakes(spec: SystemSpec, slot: Slot, route: Route) -> Iterator[str]:
    """Yield what the slot, the conditioner or the generator does not support in `resize` and `align` of a route."""
    field, part, generator = f"fusion.{slot}: '{route.id}'", spec.conditioners.get(route.id), spec.generator
    rate = spec.codec.frame_format.frame_rate
    if isinstance(part, FramewiseConditionerSpec) and slot in ("add", "concat") and not isclose(part.frame_rate, rate):
        warnings.warn(  # not an error: saved systems load
            f"conditioners.{route.id}.frame_rate is {part.frame_rate:g} Hz, but the codec has {rate:g} frames per second, so "
            f"values are stretched in time; set frame_rate: {rate:g}",
            stacklevel=2,
        )
    if route.resize and slot not in ("add", "concat"):
        yield f"{field} has `resize`, which only add and concat support"
    if route.align == "steps":
        if slot != "add":
            yield f"{field} has `align: steps`, which only add supports"
        elif generator is not None and "steps" not in generator.alignments:
            yield f"{field} has `align: steps`, but generator '{generator.type}' aligns to frames only"  # type: ignore[attr-defined]
        if route.resize == "cut" or (route.resize is None and part is not None and part.output_kind != "vector"):
            yield f"{field} has `align: steps`, which needs `resize: nearest` or `linear`"
