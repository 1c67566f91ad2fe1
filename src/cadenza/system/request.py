"""Request: what to generate, the same for Python, the command line and every other door."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec, explain


@dataclass(frozen=True)
class Clip:
    """One clip to make."""

    item: Mapping[str, Any]
    seconds: float | None
    seed: int


class Request(Spec):
    """Items with their durations and seeds, and how to sample them; None takes the system's default.

    `seconds` and `seed` are one value for all items or one each. `variations=n` makes n clips of every item
    with the seeds seed, seed+1, ..., seed+n-1.
    """

    items: tuple[dict[str, Any], ...] = Field(min_length=1)
    seconds: float | tuple[float, ...] | None = None
    seed: int | tuple[int, ...] = 0
    guidance: float | None = None
    sampling: dict[str, Any] | None = None
    variations: int = Field(1, ge=1, le=1024)

    @classmethod
    def of(cls, what: "Request | str | Mapping[str, Any] | list[Any] | tuple[Any, ...]", **fields: Any) -> "Request":
        """A request from a prompt, an item, or a list of either; raises RequestError with every mistake."""
        if isinstance(what, Request):
            return cls.of(list(what.items), **{**_given(what), **fields})
        try:
            return cls.model_validate({"items": what, **fields})
        except ValidationError as error:
            raise RequestError(explain(cls, {"items": what, **fields}, error, "request")) from None

    @field_validator("items", mode="before")
    @classmethod
    def _as_items(cls, value: Any) -> Any:
        several = value if isinstance(value, (list, tuple)) else [value]
        items = [{"prompt": one} if isinstance(one, str) else one for one in several]
        for item in items:
            if not isinstance(item, Mapping):
                raise ValueError(f"an item is a prompt or a mapping of ids to values, not {type(item).__name__}")
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

    @field_validator("guidance")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"must be a finite number, got {value}")
        return value

    @model_validator(mode="after")
    def _one_each(self) -> "Request":
        for name in ("seconds", "seed"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.items):
                raise ValueError(f"{name} has {len(value)} values for {len(self.items)} items; give one, or one each")
        return self

    def clips(self) -> list[Clip]:
        """Every clip in order: the variations of the first item, then of the second, ..."""
        clips = []
        for i, item in enumerate(self.items):
            seconds = self.seconds[i] if isinstance(self.seconds, tuple) else self.seconds
            seed = self.seed[i] if isinstance(self.seed, tuple) else self.seed
            clips += [Clip(item, seconds, seed + j) for j in range(self.variations)]
        return clips


def _given(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.model_fields_set if name != "items"}
