"""SystemSpec: which parts, and whether they fit."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import ConditionerSpec
from cadenza.core.errors import SpecError
from cadenza.core.migrations import FORMAT, migrate_spec
from cadenza.core.spec import Spec, did_you_mean
from cadenza.core.types import Slot
from cadenza.generators.base import GeneratorSpec
from cadenza.samplers.guidance import Guidance, GuidanceTerm, expand_guidance
from cadenza.system.prompt_patterns import PromptPattern

_TAKES = {  # slot -> what may go there
    "cross": ("vector", "tokens", "frames"),
    "prepend": ("vector", "tokens", "frames"),
    "add": ("vector", "frames"),
    "concat": ("vector", "frames"),
    "global": ("vector",),
}


class Route(Spec):
    """One conditioner's way into one slot; a bare id stands for the defaults."""

    id: str
    resize: Literal["linear", "nearest", "cut"] | None = None  # `add`, `concat`: fit another length to the frames
    align: Literal["frames", "steps"] = "frames"  # `add`: to the frame that a step predicts, or spread over all steps
    guided: bool = True  # whether guidance has a branch without it, and dropout for guidance drops it

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, data: Any) -> Any:
        return {"id": data} if isinstance(data, str) else data


class FusionSpec(Spec):
    """Slot -> the conditions that go there, in order; `ignore` names those that are read but not used."""

    model_config = ConfigDict(populate_by_name=True)

    cross: tuple[Route, ...] = ()
    prepend: tuple[Route, ...] = ()
    add: tuple[Route, ...] = ()
    concat: tuple[Route, ...] = ()
    glob: tuple[Route, ...] = Field(default=(), alias="global")
    ignore: tuple[str, ...] = ()

    @field_validator("cross", "prepend", "add", "concat", "glob")
    @classmethod
    def _once(cls, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        names = [route.id for route in routes]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"named twice in one slot: {', '.join(sorted(twice))}")
        return routes

    def routes_by_slot(self) -> dict[Slot, tuple[Route, ...]]:
        """The slots in use."""
        everything = {slot: getattr(self, "glob" if slot == "global" else slot) for slot in get_args(Slot)}
        return {slot: routes for slot, routes in everything.items() if routes}

    def slot_ids(self) -> list[tuple[Slot, str]]:
        """Every (slot, id): the keys of an absence map."""
        return [(slot, route.id) for slot, routes in self.routes_by_slot().items() for route in routes]


class GenerationDefaults(Spec):
    """What a request gets that does not say otherwise."""

    seconds: float = Field(default=10.0, gt=0)
    guidance: float = 3.0
    sampling: dict[str, Any] = {}
    stride: float | None = Field(default=None, gt=0)  # seconds from window to window of a long clip; 0.6 of a window if None


class SystemSpec(Spec):
    """A codec, and a generator with its conditioners where there is one."""

    format: int = FORMAT
    codec: CodecSpec
    conditioners: dict[str, ConditionerSpec] = {}
    prompt_patterns: tuple[PromptPattern, ...] = ()  # values that requests may give in words
    fusion: FusionSpec = FusionSpec.model_validate({})
    generator: GeneratorSpec | None = None
    defaults: GenerationDefaults = GenerationDefaults()

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        return migrate_spec(data) if isinstance(data, dict) and data.get("format") != FORMAT else data

    @model_validator(mode="after")
    def _fit(self) -> "SystemSpec":
        mistakes = [*_routing(self.fusion, self.conditioners, self.prompt_patterns), *_slots(self)]
        if self.generator is not None and (self.codec.uses_chunks or self.codec.has_loudness_scale):
            what = "overlapping chunks" if self.codec.uses_chunks else "a factor of loudness beside the frames"
            mistakes.append(
                f"generator: cannot make the frames of this codec, which have {what}; use it alone, or another codec"
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
        guided = [route.id for routes in self.fusion.routes_by_slot().values() for route in routes if route.guided]
        terms = expand_guidance(guidance, self.defaults.guidance, guided, {*guided} & {*present})
        needs_unguided = guidance.is_scheduled or guidance.rescale > 0
        return [term for term in terms if term.weight != 0 or (needs_unguided and term.unguided_weight)]

    def slot_dims(self) -> dict[Slot, int]:
        """The width of each slot in use: summed where conditions stand side by side, else shared."""
        widths: dict[Slot, int] = {}
        for slot, routes in self.fusion.routes_by_slot().items():
            each = [self.conditioners[route.id].output_dim for route in routes]
            widths[slot] = sum(each) if slot in ("concat", "global") else each[0]
        return widths


def _routing(fusion: FusionSpec, conditioners: Mapping[str, ConditionerSpec], reads: tuple[PromptPattern, ...]) -> list[str]:
    """Names that lead nowhere, in either direction."""
    known = list(conditioners)
    mistakes = [
        f"fusion.{slot} names '{name}', but there is no such conditioner.{did_you_mean(name, known)}"
        for slot, name in [*fusion.slot_ids(), *(("ignore", name) for name in fusion.ignore)]
        if name not in conditioners
    ]
    mistakes += [
        f"reads names '{name}', but there is no such conditioner.{did_you_mean(name, known)}"
        for reading in reads
        for name in (reading.of, reading.to)
        if name not in conditioners
    ]
    mistakes += [
        f"fusion.ignore names '{name}', which fusion.{slot} uses; take it out of one of them"
        for slot, name in fusion.slot_ids()
        if name in fusion.ignore
    ]
    routed = {name for _, name in fusion.slot_ids()} | set(fusion.ignore)
    mistakes += [
        f"conditioners.{name} goes to no slot; name it in fusion.cross or another slot, or in fusion.ignore"
        for name in known
        if name not in routed
    ]
    return mistakes


def _slots(spec: SystemSpec) -> list[str]:
    """Slots that the generator lacks, conditions that do not suit their slot, widths that differ."""
    mistakes = []
    for slot, routes in spec.fusion.routes_by_slot().items():
        if spec.generator is not None and slot not in spec.generator.slots:
            can = ", ".join(sorted(spec.generator.slots))
            mistakes.append(f"fusion.{slot}: generator '{spec.generator.type}' has no such slot; it has: {can}")  # type: ignore[attr-defined]
        parts = {route.id: spec.conditioners[route.id] for route in routes if route.id in spec.conditioners}
        for name, part in parts.items():
            if part.output_kind not in _TAKES[slot]:
                fits = ", ".join(s for s, takes in _TAKES.items() if part.output_kind in takes)
                mistakes.append(f"fusion.{slot}: '{name}' gives {part.output_kind}; that fits: {fits}")
        widths = {name: part.output_dim for name, part in parts.items()}
        if slot not in ("concat", "global") and len(set(widths.values())) > 1:
            mistakes.append(f"fusion.{slot}: widths must be equal, but they are {widths}")
        mistakes += [mistake for route in routes for mistake in _fitting(spec, slot, route)]
    return mistakes


def _fitting(spec: SystemSpec, slot: Slot, route: Route) -> list[str]:
    """What a route says of lengths that its slot, its conditioner or the generator cannot do."""
    where, part = f"fusion.{slot}: '{route.id}'", spec.conditioners.get(route.id)
    mistakes = []
    if route.resize and slot not in ("add", "concat"):
        mistakes.append(f"{where} has `resize`, which only add and concat know")
    if route.align == "steps":
        if slot != "add":
            mistakes.append(f"{where} has `align: steps`, which only add knows")
        elif spec.generator is not None and "steps" not in spec.generator.alignments:
            mistakes.append(f"{where} has `align: steps`, but generator '{spec.generator.type}' has no steps beside frames")  # type: ignore[attr-defined]
        if route.resize == "cut" or (route.resize is None and part is not None and part.output_kind != "vector"):
            mistakes.append(f"{where} has `align: steps`, which needs `resize: nearest` or `linear`")
    return mistakes
