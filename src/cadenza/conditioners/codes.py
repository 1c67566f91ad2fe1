"""Codes of another stage, such as a coarser model, as one vector per frame: the sum of codebook embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, FramewiseConditionerSpec
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes as Coded
from cadenza.core.types import MaskedSequence


class CodesSpec(FramewiseConditionerSpec):
    """Codes of up to `codebooks` codebooks of `bins` entries at `rate` Hz (default `frame_rate`).

    At another rate each frame of the clip uses the code at its center.
    """

    type: Literal["codes"] = "codes"
    widget: ClassVar[str] = "codes"
    codebooks: int = Field(ge=1)
    bins: int = Field(ge=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @classmethod
    def example(cls) -> tuple["CodesSpec", list[Any]]:
        rng = torch.Generator().manual_seed(0)
        codes = Coded(torch.randint(5, (1, 2, 9), generator=rng), lengths=torch.tensor([7]))
        spec = cls(output_dim=8, frame_rate=10, max_frames=12, codebooks=2, bins=5, rate=7.5)
        return spec, [codes, [[0, 4, 2]], [[1] * 9, [3] * 9]]

    def build(self) -> "CodesConditioner":
        return CodesConditioner(self)


class CodesConditioner(Conditioner[Any]):
    """Sum the embeddings of the codebooks at each frame.

    A value is Codes of one clip, ids [k, f] as a tensor or lists, or the path of a file written by `cadenza encode`.
    Missing codebooks add nothing; frames after the last code are masked. Raises RequestError for invalid codes.
    """

    handles_timelines: ClassVar[bool] = True  # a list of three ids is not a span

    def __init__(self, spec: CodesSpec) -> None:
        super().__init__(spec)
        self.placeholder = Coded(torch.zeros(1, spec.codebooks, 1, dtype=torch.long))
        self.table = nn.Embedding(spec.codebooks * spec.bins, spec.output_dim)

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return `ids` [b, k, f] at each frame of the clip, -1 where missing."""
        steps = (self.spec.rate or self.spec.frame_rate) / self.spec.frame_rate
        at = ((torch.arange(self.spec.max_frames, dtype=torch.float64) + 0.5) * steps).floor().long()
        ids = torch.full((len(values), self.spec.codebooks, len(at)), -1)
        for row, value in zip(ids, values, strict=True):
            codes = self._ids(value)
            exists = at < codes.shape[-1]
            row[: len(codes), exists] = codes[:, at[exists]]
        return {"ids": ids}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        ids = tensors["ids"]
        exists = ids >= 0
        first = torch.arange(self.spec.codebooks, device=ids.device)[:, None] * self.spec.bins
        x = self.table(ids.clamp(min=0) + first) * exists[..., None]
        return MaskedSequence(x.sum(1), exists.any(1))

    def _ids(self, value: Any) -> Int[Tensor, "k f"]:
        if isinstance(value, str | Path):
            value = _read(value)
        if isinstance(value, Coded):
            if len(value) != 1:
                raise RequestError(f"codes of one clip are needed for each item, and these are of {len(value)}; give one each")
            ids = value.ids[0, :, : int(value.lengths)].cpu()
        else:
            try:
                ids = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                message = f"codes are Codes, ids [codebooks, frames] or a file of them, not {value!r} ({error})"
                raise RequestError(message) from None
            ids = ids[0].cpu() if ids.ndim == 3 and len(ids) == 1 else ids.cpu()
        k, bins = self.spec.codebooks, self.spec.bins
        if ids.ndim != 2 or ids.dtype.is_floating_point or ids.dtype == torch.bool or not ids.numel():
            raise RequestError(f"codes are whole numbers [codebooks, frames], not {list(ids.shape)} of {ids.dtype}")
        if len(ids) > k:
            raise RequestError(f"the codes have {len(ids)} codebooks, this control reads {k}; give the first {k} of them")
        if int(ids.min()) < 0 or int(ids.max()) >= bins:
            raise RequestError(f"codes must lie between 0 and {bins - 1}; were they made by another codec?")
        return ids.long()


def _read(path: str | Path) -> Coded:
    try:
        with safe_open(path, "pt") as file:
            if "codec" not in (file.metadata() or {}) or not {"ids", "lengths"} <= set(file.keys()):
                raise RequestError(f"{path}: a safetensors file, but not of codes; write one with `cadenza encode`")
            return Coded(file.get_tensor("ids"), file.get_tensor("lengths"))
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path}: not a readable file of codes ({error}); write it with `cadenza encode`") from None
