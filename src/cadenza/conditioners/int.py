"""An integer in a range as one trained vector: seconds, a class, a tempo."""

import math
import warnings
from numbers import Real
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec, EmbeddingTableConditioner
from cadenza.core.errors import RequestError
from cadenza.core.types import ConditionKind


class IntSpec(ConditionerSpec):
    """Integers from `min` to `max` inclusive; others are clamped with a warning or raise RequestError (`outside`).

    `std` is the standard deviation of the vectors before training: 1 for attention, 0.1 if they are added to embeddings.
    """

    type: Literal["int"] = "int"
    widget: ClassVar[str] = "number"
    min: int = 0
    max: int = 512
    outside: Literal["clamp", "error"] = "clamp"
    std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min}) must be below max ({self.max})")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "vector"

    @classmethod
    def example(cls) -> tuple["IntSpec", list[Any]]:
        return cls(output_dim=8, min=-2, max=3), [-2, 3, 0.0]

    def build(self) -> "IntConditioner":
        return IntConditioner(self)


class IntConditioner(EmbeddingTableConditioner[int]):
    """Look up one trained vector per integer."""

    def __init__(self, spec: IntSpec) -> None:
        super().__init__(spec, spec.max - spec.min + 1)
        self.placeholder = spec.min

    def row(self, value: Any) -> int:
        low, high = self.spec.min, self.spec.max
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not float(value).is_integer():
            raise RequestError(f"a whole number from {low} to {high} is needed, got {value!r}")
        if not low <= value <= high:
            if self.spec.outside == "error":
                raise RequestError(f"{value:g} is outside the range from {low} to {high} that the model was trained on")
            warnings.warn(f"{value:g} is outside the range from {low} to {high}: the nearest end is used", stacklevel=2)
        return min(max(round(float(value)), low), high) - low
