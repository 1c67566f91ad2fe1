"""Beat positions as one vector per frame, from a tempo or from beat times."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, FramewiseConditionerSpec, RangeConditionerSpec, is_number
from cadenza.core.errors import RequestError
from cadenza.core.types import MaskedSequence

_CYCLES = (1 / 4, 1 / 3, 1 / 2, 1, 2, 3, 4)  # per beat: bars of 4, 3 and 2 beats, the beat, subdivisions


class BeatsSpec(RangeConditionerSpec, FramewiseConditionerSpec):
    """Range of the tempo in beats per minute; a tempo outside is clamped with a warning, beat times are not."""

    type: Literal["beats"] = "beats"
    min: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    max: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    hidden: int = Field(default=128, ge=1)

    @classmethod
    def example(cls) -> tuple["BeatsSpec", list[Any]]:
        return cls(output_dim=8, frame_rate=10, max_frames=12, hidden=4), [80, 120.5, [0.1, 0.6, 1.2]]

    def build(self) -> "BeatsConditioner":
        return BeatsConditioner(self)


class BeatsConditioner(Conditioner[Any]):
    """Embed sinusoids of the beat phase and the log tempo at each frame with two layers.

    A value is a tempo in beats per minute, with a beat at the start of the clip, or at least two increasing beat times in
    seconds; they are extrapolated at their first and last tempo. Raises RequestError for other values.
    """

    def __init__(self, spec: BeatsSpec) -> None:
        super().__init__(spec)
        self.placeholder = spec.min
        self.up = nn.Linear(2 * len(_CYCLES) + 1, spec.hidden)
        self.out = nn.Linear(spec.hidden, spec.output_dim)

    def crop_value(self, value: Any, start: float) -> Any:
        """Return beat times relative to `start`; a tempo becomes its first two beat times."""
        if is_number(value):
            return [-start, 60 / self.spec.clamp(value) - start]
        return [x - start for x in value] if isinstance(value, list | tuple) and all(map(is_number, value)) else value

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return `count` [b, f], beats since the first one, and `speed` [b, f], beats per second."""
        count = np.stack([self._count(value) for value in values])
        step = 1 / self.spec.frame_rate
        return {name: torch.from_numpy(x).float() for name, x in (("count", count[:, :-1]), ("speed", np.diff(count) / step))}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        count = tensors["count"]
        cycles = torch.tensor(_CYCLES, device=count.device)
        phase = 2 * math.pi * (count[..., None] * cycles)
        tempo = (60 * tensors["speed"]).log2()[..., None]
        x = torch.cat([tempo - math.log2(100), phase.sin(), phase.cos()], -1).to(self.out.weight.dtype)
        return MaskedSequence(self.out(nn.functional.gelu(self.up(x))), torch.ones_like(count, dtype=torch.bool))

    def _count(self, value: Any) -> np.ndarray:
        time = np.arange(self.spec.max_frames + 1) / self.spec.frame_rate
        if isinstance(value, Tensor | np.ndarray):
            value = value.tolist()
        if is_number(value):
            return time * self.spec.clamp(value) / 60
        if not isinstance(value, list | tuple) or len(value) < 2 or not all(map(is_number, value)):
            raise RequestError(f"a tempo in beats a minute or the times of two or more beats are needed, got {value!r}")
        beats = np.asarray(value, float)
        gaps = np.diff(beats)
        if (gaps <= 0).any():
            raise RequestError("the times of the beats must rise, in seconds")
        count = np.interp(time, beats, np.arange(len(beats)))
        before, after = time < beats[0], time > beats[-1]
        count[before] = (time[before] - beats[0]) / gaps[0]
        count[after] = len(beats) - 1 + (time[after] - beats[-1]) / gaps[-1]
        return count
