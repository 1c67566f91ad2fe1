"""Request: items to generate, their durations and seeds, and the sampling, as every interface passes them."""

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
    """One clip of a request."""

    item: Mapping[str, Any]
    seconds: float | None
    seed: int
    continue_from: AudioPrompt | None = None


class Request(Spec):
    """Items with their durations, seeds, guidance and sampling; None takes the system's default.

    `seconds`, `seed` and `continue_from` are one value for all items or one each. `variations=n` gives n clips of
    every item with the seeds seed, seed+1, ..., seed+n-1. `seconds` includes the audio prompt.
    """

    items: tuple[dict[str, Any], ...] = Field(min_length=1)
    seconds: float | tuple[float, ...] | None = None
    seed: int | tuple[int, ...] = 0
    guidance: Guidance = Guidance()  # a number is a scale, None is the system's default
    two_step_cfg: bool = False  # guidance in two passes instead of one of twice the batch
    sampling: dict[str, Any] | None = None
    variations: int = Field(1, ge=1, le=1024)
    continue_from: Any = None  # Audio, Codes, or a file of either; None: from the start
    include_prompt: bool = True  # whether the result contains the audio prompt
    stride: float | None = Field(None, gt=0, allow_inf_nan=False)  # seconds from window to window of a long clip
    loudness: float | None = Field(None, ge=-60, le=-5)  # LUFS of each clip, lower if its peak would clip

    @classmethod
    def from_input(
        cls, value: "Request | str | Mapping[str, Any] | list[Any] | tuple[Any, ...] | None", **fields: Any
    ) -> "Request":
        """Build a request from a prompt, an item, None, or a list of these; raise RequestError that lists every mistake."""
        if isinstance(value, Request):
            given = {name: getattr(value, name) for name in value.model_fields_set if name != "items"}
            return value if not fields else cls.from_input(list(value.items), **{**given, **fields})
        data = {"items": value, **fields}
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RequestError(format_validation_error(error, "request")) from None

    @field_validator("items", mode="before")
    @classmethod
    def _as_items(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        items = [{"prompt": item} if isinstance(item, str) else {} if item is None else item for item in values]
        for item in items:
            if not isinstance(item, Mapping):
                raise ValueError(f"an item is a prompt, a mapping of ids to values or None, not {type(item).__name__}")
            for name, text in item.items():
                if isinstance(text, str) and not text.strip():
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
    def _as_audio_prompts(cls, value: Any) -> Any:
        if isinstance(value, Audio | Codes | Latents) and len(value) > 1:
            value = list(value)
        for prompt in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(prompt, AudioPrompt | None):
                raise ValueError(f"must be Audio, Codes or the path of a file, or a list of these, not {type(prompt).__name__}")
        return tuple(value) if isinstance(value, list) else value

    @field_validator("guidance", mode="before")
    @classmethod
    def _as_guidance(cls, value: Any) -> Any:
        """Turn a number into the field `scale`; it is checked here, so that errors speak of a number."""
        if isinstance(value, Guidance | Mapping | None):
            return {} if value is None else value
        try:
            scale = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"must be a number or a mapping of the fields of Guidance, got {value!r}") from None
        if not math.isfinite(scale):
            raise ValueError(f"must be a finite number, got {value}")
        return {"scale": scale}

    @model_validator(mode="after")
    def _one_each(self) -> "Request":
        negative = len(self.guidance.negative)
        if negative not in (0, 1, len(self.items)):
            raise ValueError(f"guidance.negative has {negative} items for {len(self.items)}; give one, or one each")
        for name in ("seconds", "seed", "continue_from"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.items):
                raise ValueError(f"{name} has {len(value)} values for {len(self.items)} items; give one, or one each")
        return self

    def negative_items(self) -> list[dict[str, Any]] | None:
        """Return the negative item of each clip, in the order of `expand`, or None if the request has none."""
        negatives = self.guidance.negative
        if not negatives:
            return None
        by_item = negatives if len(negatives) == len(self.items) else negatives * len(self.items)
        return [item for item in by_item for _ in range(self.variations)]

    def expand(self) -> list[ClipRequest]:
        """Return every clip: the variations of the first item, then of the second, ..."""
        clips = []
        for i, item in enumerate(self.items):
            values: tuple[Any, ...] = (self.seconds, self.seed, self.continue_from)
            seconds, seed, prompt = (value[i] if isinstance(value, tuple) else value for value in values)
            clips += [ClipRequest(item, seconds, seed + j, prompt) for j in range(self.variations)]
        return clips
