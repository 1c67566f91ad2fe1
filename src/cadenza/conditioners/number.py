"""A number in a range as one vector: seconds, tempo, loudness."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, RangeConditionerSpec, parse_number
from cadenza.core.types import ConditionKind, MaskedSequence

_LOWEST, _HIGHEST = 0.25, 32.0  # cycles per range of the first and the last band


class NumberSpec(RangeConditionerSpec):
    """Numbers from `min` to `max`, on a `log` scale if ratios matter.

    Numbers outside are clamped with a warning or raise RequestError (`outside`). The frequencies of the `bands` are spread
    evenly over octaves, or learned.
    """

    type: Literal["number"] = "number"
    output_kind: ClassVar[ConditionKind] = "vector"
    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)
    log: bool = False
    outside: Literal["clamp", "error"] = "clamp"
    bands: int = Field(default=16, ge=1)
    frequencies: Literal["spread", "learned"] = "spread"

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.log and self.min <= 0:
            raise ValueError(f"min ({self.min:g}) must be above 0 for a logarithmic scale")
        return self

    @classmethod
    def example(cls) -> tuple["NumberSpec", list[Any]]:
        return cls(output_dim=8, min=40, max=200, log=True, bands=4), [80, 120.5, 200]

    def build(self) -> "NumberConditioner":
        return NumberConditioner(self)


class NumberConditioner(Conditioner[float]):
    """Project Fourier features (arXiv:2006.10739) of the position in the range with a linear layer.

    Learned frequencies, in cycles per range, are initialized from a standard normal distribution.
    """

    def __init__(self, spec: NumberSpec) -> None:
        super().__init__(spec)
        self.placeholder = spec.min
        self.cycles = nn.Parameter(torch.randn(spec.bands)) if spec.frequencies == "learned" else None
        self.out = nn.Linear(2 * spec.bands + 1, spec.output_dim)

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return {"position": torch.tensor([self._position(value) for value in values], dtype=torch.float32)}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        position = tensors["position"][:, None]
        cycles = self.cycles
        if cycles is None:
            cycles = torch.logspace(math.log2(_LOWEST), math.log2(_HIGHEST), self.spec.bands, base=2.0, device=position.device)
        phase = 2 * math.pi * position * cycles
        x = torch.cat([position, phase.sin(), phase.cos()], -1).to(self.out.weight.dtype)
        return MaskedSequence(self.out(x)[:, None], torch.ones_like(position, dtype=torch.bool))

    def _position(self, value: Any) -> float:
        """Return the position in the range, from 0 to 1."""
        low, high = self.spec.min, self.spec.max
        number = self.spec.clamp(parse_number(value, f"a number from {low:g} to {high:g}"), self.spec.outside)
        return math.log(number / low) / math.log(high / low) if self.spec.log else (number - low) / (high - low)
