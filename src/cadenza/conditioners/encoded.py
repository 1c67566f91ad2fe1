"""Precomputed vectors: one per clip, a set of tokens, or one per frame."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec, ProjectionConditioner, pad_rows
from cadenza.core.errors import RequestError
from cadenza.core.types import ConditionKind


class EncodedSpec(ConditionerSpec):
    """Vectors of `dim` numbers (default `output_dim`), or with another `kind` matrices, projected to `output_dim`.

    Matrices are [n, dim] with `along: rows` and [dim, n] with `along: columns`.
    """

    type: Literal["encoded"] = "encoded"
    widget: ClassVar[str] = "file"
    kind: ConditionKind = "vector"
    dim: int | None = Field(default=None, ge=1)
    along: Literal["rows", "columns"] = "rows"
    project: Literal["always", "auto"] = "always"  # auto: only if dim differs from output_dim

    @property
    def output_kind(self) -> ConditionKind:  # type: ignore[override]
        return self.kind

    @classmethod
    def example(cls) -> tuple["EncodedSpec", list[Any]]:
        rng = torch.Generator().manual_seed(0)
        return cls(output_dim=8, dim=3, kind="tokens"), [torch.randn(n, 3, generator=rng) for n in (4, 1, 2)]

    def build(self) -> "PrecomputedConditioner":
        return PrecomputedConditioner(self)


class PrecomputedConditioner(ProjectionConditioner[Any]):
    """Project vectors with a linear layer, if needed; raises RequestError for other shapes or non-finite numbers."""

    def __init__(self, spec: EncodedSpec) -> None:
        super().__init__(spec)
        self.dim = spec.dim or spec.output_dim
        self.add_projection(self.dim)

    @property
    def placeholder(self) -> Tensor:  # type: ignore[override]
        return torch.zeros((1, self.dim) if self.spec.along == "rows" else (self.dim, 1))

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        x, mask = pad_rows([self._rows(value) for value in values])
        return {"x": x, "mask": mask}

    def _rows(self, value: Any) -> Tensor:
        """Return the vectors of a value [n, dim] on the CPU."""
        try:
            x = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value, np.float32)).float().cpu()
        except (TypeError, ValueError):
            x = torch.empty(0, 0)
        x = x[None] if x.ndim == 1 else x.T if x.ndim == 2 and self.spec.along == "columns" else x  # noqa: PLR2004
        single = self.spec.kind == "vector"
        if x.ndim != 2 or x.shape[1] != self.dim or not len(x) or (single and len(x) > 1) or not bool(x.isfinite().all()):  # noqa: PLR2004
            shape = f"[{self.dim}]" if single else f"[n, {self.dim}]" if self.spec.along == "rows" else f"[{self.dim}, n]"
            received = str(list(value.shape)) if hasattr(value, "shape") else repr(value)
            raise RequestError(f"finite numbers {shape} are needed, got {received}")
        return x
