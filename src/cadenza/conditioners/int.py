"""An integer in a range as one trained vector: seconds, a class, a tempo."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from cadenza.conditioners.base import EmbeddingTableConditioner, RangeConditionerSpec, parse_number
from cadenza.core.errors import RequestError
from cadenza.core.types import ConditionKind


class IntSpec(RangeConditionerSpec):
    """Integers from `min` to `max` inclusive; others are clamped with a warning or raise RequestError (`outside`)."""

    type: Literal["int"] = "int"
    output_kind: ClassVar[ConditionKind] = "vector"
    min: int = 0
    max: int = 512
    outside: Literal["clamp", "error"] = "clamp"
    std: float = Field(default=1.0, gt=0)  # of the vectors before training; 0.1 if they are added to embeddings

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
        needed = f"a whole number from {self.spec.min} to {self.spec.max}"
        number = parse_number(value, needed)
        if not float(number).is_integer():
            raise RequestError(f"{needed} is needed, got {number!r}")
        return round(self.spec.clamp(number, self.spec.outside)) - self.spec.min
