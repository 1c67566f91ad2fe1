"""Request: what to generate, the same for Python, the command line and every other door."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec, format_validation_error
from cadenza.core.types import Codes, Latents
from cadenza.dsp.audio import Audio
from cadenza.samplers.guidance import Guidance
from cadenza.system.continuation import AudioPrompt


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make."""

    item: Mapping[str, Any]
    seconds: float | None
    seed: int
    continue_from: AudioPrompt | None = None


class Request(Spec):
    """Items with their durations and seeds, and how to sample them; None takes the system's default.

    `seconds`, `seed` and `continue_from` are one value for all items or one each. `variations=n` makes n clips of
    every item with the seeds seed, seed+1, ..., seed+n-1. `seconds` counts what a clip continues from.
    """

    items: tuple[dict[str, Any], ...] = Field(min_length=1)
    seconds: float | tuple[float, ...] | None = None
    seed: int | tuple[int, ...] = 0
    guidance: Guidance | None = None  # or a number, its scale
    two_step_cfg: bool = False  # guidance in two passes instead of one of twice the width
    sampling: dict[str, Any] | None = None
    variations: int = Field(1, ge=1, le=1024)
    continue_from: Any = None  # Audio, Codes, or a file of either; None in a list: start afresh
    include_prompt: bool = True  # whether what a clip continues from is given back with it
    stride: float | None = Field(None, gt=0, allow_inf_nan=False)  # seconds from window to window of a long clip
    loudness: float | None = Field(None, ge=-60, le=-5)  # LUFS of each clip, lower where its peak would clip

    @classmethod
    def from_input(
        cls, what: "Request | str | Mapping[str, Any] | list[Any] | tuple[Any, ...] | None", **fields: Any
    ) -> "Request":
        """A request from a prompt, an item, None for neither, or a list of these; raises RequestError with every mistake."""
        if isinstance(what, Request):
            return what if not fields else cls.from_input(list(what.items), **{**_given(what), **fields})
        try:
            return cls.model_validate({"items": what, **fields})
        except ValidationError as error:
            raise RequestError(format_validation_error(cls, {"items": what, **fields}, error, "request")) from None

    @field_validator("items", mode="before")
    @classmethod
    def _as_items(cls, value: Any) -> Any:
        several = value if isinstance(value, (list, tuple)) else [value]
        items = [{"prompt": one} if isinstance(one, str) else {} if one is None else one for one in several]
        for item in items:
            if not isinstance(item, Mapping):
                raise ValueError(f"an item is a prompt, a mapping of ids to values or None, not {type(item).__name__}")
            for name, given in item.items():
                if isinstance(given, str) and not given.strip():
                    raise ValueError(f"'{name}' is empty; write something, or leave it out to generate without it")
        return tuple(dict(item) for item in items)

    @field_validator("seconds")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        for seconds in value if isinstance(value, tuple) else (value,):
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"must be a number of seconds above 0, got {seconds}")
        return value

    @field_validator("continue_from")
    @classmethod
    def _as_beginnings(cls, value: Any) -> Any:
        if isinstance(value, Audio | Codes | Latents) and len(value) > 1:
            value = list(value)
        for one in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(one, AudioPrompt | None):
                raise ValueError(f"must be Audio, Codes or the path of a file, or a list of these, not {type(one).__name__}")
        return tuple(value) if isinstance(value, list) else value

    @field_validator("guidance", mode="before")
    @classmethod
    def _as_guidance(cls, value: Any) -> Any:
        """The fields of Guidance; a scale alone is checked here, so that its mistakes are those of a number."""
        if isinstance(value, Guidance | Mapping | None):
            return value
        try:
            scale = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"must be a number or a mapping of the fields of Guidance, got {value!r}") from None
        if not math.isfinite(scale):
            raise ValueError(f"must be a finite number, got {value}")
        return {"scale": scale}

    @property
    def effective_guidance(self) -> Guidance:
        """What is asked of guidance; its scale is None where the system's own is to hold."""
        return self.guidance or Guidance()

    @model_validator(mode="after")
    def _one_each(self) -> "Request":
        negative = len(self.effective_guidance.negative)
        if negative not in (0, 1, len(self.items)):
            raise ValueError(f"guidance.negative has {negative} items for {len(self.items)}; give one, or one each")
        for name in ("seconds", "seed", "continue_from"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.items):
                raise ValueError(f"{name} has {len(value)} values for {len(self.items)} items; give one, or one each")
        return self

    def negative_items(self) -> list[dict[str, Any]] | None:
        """For every clip, in the order of `clips`, the item that stands in the place of no conditions, if that is asked for."""
        found = self.effective_guidance.negative
        if not found:
            return None
        each = found if len(found) == len(self.items) else found * len(self.items)
        return [item for item in each for _ in range(self.variations)]

    def expand(self) -> list[ClipRequest]:
        """Every clip in order: the variations of the first item, then of the second, ..."""
        clips = []
        for i, item in enumerate(self.items):
            seconds, seed, beginning = _of(self.seconds, i), _of(self.seed, i), _of(self.continue_from, i)
            clips += [ClipRequest(item, seconds, seed + j, beginning) for j in range(self.variations)]
        return clips


def _of(value: Any, item: int) -> Any:
    """What one item gets of a value for all or one each."""
    return value[item] if isinstance(value, tuple) else value


def _given(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.model_fields_set if name != "items"}
