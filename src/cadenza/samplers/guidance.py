"""Guidance: a weighted sum of the model's outputs under several conditions, evaluated as one batch."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec, did_you_mean
from cadenza.core.types import FusedConditions, GuidanceBranch, InterpolatedCondition, MaskedSequence

Scale = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ALL = "all"  # every condition, in `weights`
SEPARATOR = "+"  # between the ids of a group, in `weights`


class Guidance(Spec):
    """Strength of the conditions of a request; a bare number is its `scale`.

    Outputs are combined as `scale` * (all conditions) + (1 - `scale`) * (none); None is the system's default.
    `id_scales` multiplies the contribution of one id given all others (for one id the double guidance of
    MusicGen-Style, arXiv:2407.12563). `weights` gives the sum itself: the weight of the output for one id, for a group
    ("melody+chords") or for `all`; the rest of 1 is the weight of the output without conditions. `negative` replaces the
    absence of conditions by an item, or one item each. Guidance is active in the part `interval` of the clip or of the
    sampler's steps, with a share that changes from `strength[0]` to `strength[1]` by `schedule`; elsewhere, and at share
    0, the output for all conditions is used. `rescale` is phi of arXiv:2305.08891, section 3.4.
    """

    scale: Scale | None = None
    id_scales: dict[str, Scale] = {}
    weights: dict[str, Scale] = {}
    negative: tuple[dict[str, Any], ...] = ()
    interval: tuple[Share, Share] = (0.0, 1.0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    strength: tuple[Share, Share] = (1.0, 0.0)
    rescale: Share = 0.0

    @field_validator("negative", mode="before")
    @classmethod
    def _as_items(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        items = [{"prompt": item} if isinstance(item, str) else {} if item is None else item for item in values]
        for item in items:
            if not isinstance(item, Mapping):
                raise ValueError(f"expected a text or a mapping of ids to values, got {type(item).__name__}")
        return tuple(dict(item) for item in items)

    @model_validator(mode="after")
    def _consistent(self) -> "Guidance":
        if self.weights and (self.scale is not None or self.id_scales):
            raise ValueError("weights: cannot be combined with scale or id_scales; remove one of them")
        if self.interval[0] >= self.interval[1]:
            raise ValueError(f"interval: the start must be below the end, got {list(self.interval)}")
        return self

    @property
    def is_scheduled(self) -> bool:
        """Whether the share of guidance changes over the frames or steps."""
        return self.schedule != "constant" or self.interval != (0.0, 1.0)


@dataclass(frozen=True)
class GuidanceTerm:
    """One output of the sum: for the conditions `ids`, or without any if None."""

    ids: frozenset[str] | None
    weight: float
    unguided_weight: float = 0.0  # weight where guidance is off


def expand_guidance(guidance: Guidance, scale: float, ids: Collection[str], given: Collection[str]) -> list[GuidanceTerm]:
    """Return the distinct outputs to compute, with their weights, which sum to 1.

    `ids` are all conditions of the system, `given` those that have a value in some item, `scale` the default scale.
    Raises RequestError for an unknown id.
    """
    present, known = frozenset(given), frozenset(ids)
    sums: dict[frozenset[str] | None, float] = {present: 0.0}

    def add(names: frozenset[str], weight: float) -> None:
        sums[names & present] = sums.get(names & present, 0.0) + weight

    if guidance.weights:
        for names, weight in guidance.weights.items():
            add(known if names == ALL else _parse_ids(names, known), weight)
    else:
        scale = scale if guidance.scale is None else guidance.scale
        add(known, scale)
        for name, times in guidance.id_scales.items():
            add(known, scale * (times - 1))
            add(known - _parse_ids(name, known), -scale * (times - 1))
    sums[None] = 1 - sum(sums.values())
    all_given: frozenset[str] | None = present
    if not guidance.negative and frozenset() in sums:  # no ids is the same output as no conditions
        sums[None] += sums.pop(frozenset())
        all_given = present or None
    return [GuidanceTerm(names, weight, float(names == all_given)) for names, weight in sums.items()]


def _parse_ids(names: str, known: frozenset[str]) -> frozenset[str]:
    ids = frozenset(name.strip() for name in names.split(SEPARATOR))
    for name in sorted(ids - known):
        raise RequestError(f"guidance: no condition called '{name}'.{did_you_mean(name, sorted(known))}")
    return ids


def guidance_schedule(guidance: Guidance, lengths: Int[Tensor, " b"], *, size: int) -> Float[Tensor, "b f"] | None:
    """Return the share of guidance, 0 to 1, in the `lengths` frames or steps of each item; None if it is always 1."""
    if not guidance.is_scheduled:
        return None
    progress = (torch.arange(size, device=lengths.device) + 0.5) / lengths.clamp(min=1)[:, None]
    first, last = guidance.strength
    share = torch.ones_like(progress)
    if guidance.schedule == "linear":
        share = first + (last - first) * progress
    elif guidance.schedule == "cosine":
        share = last + (first - last) * (1 + (math.pi * progress).cos()) / 2
    low, high = guidance.interval
    return torch.where((progress >= low) & (progress < high), share, 0)


def nonzero_branches(branches: Sequence[GuidanceBranch], *, plain: bool = False) -> list[GuidanceBranch]:
    """Return the branches with nonzero weight, and with `plain` those with nonzero unguided weight.

    Raises RequestError unless the weights sum to 1.
    """
    total = sum(branch.weight for branch in branches)
    if abs(total - 1) > 1e-4:
        raise RequestError(f"guidance weights sum to {total:g}, expected 1: {[branch.weight for branch in branches]}")
    return [branch for branch in branches if branch.weight != 0 or (plain and branch.unguided_weight != 0)]


@dataclass(frozen=True)
class GuidanceMixer:
    """Combines the outputs of branches that are concatenated along the batch; `plain` are their unguided weights."""

    weights: tuple[float, ...]
    plain: tuple[float, ...] = ()
    rescale: float = 0.0

    @classmethod
    def of(cls, branches: Sequence[GuidanceBranch], rescale: float = 0.0) -> "GuidanceMixer":
        return cls(tuple(branch.weight for branch in branches), tuple(branch.unguided_weight for branch in branches), rescale)

    def __call__(
        self, outputs: Float[Tensor, "nb *shape v"], strength: Float[Tensor, " b"] | None = None, *, spread: int | None = None
    ) -> Float[Tensor, "b *shape v"]:
        """Return the guided outputs; `strength` is the share of guidance, `spread` as in `rescale_std`."""
        if len(self.weights) == 1:
            return outputs
        guided = weighted_sum(outputs, self.weights)
        if strength is None and not self.rescale:
            return guided
        plain = weighted_sum(outputs, self.plain)
        if self.rescale:
            guided = rescale_std(guided, plain, self.rescale, spread=spread)
        if strength is None:
            return guided
        return torch.lerp(plain, guided, strength.to(guided.dtype).view(-1, *[1] * (guided.dim() - 1)))


def weighted_sum(outputs: Float[Tensor, "nb ..."], weights: Sequence[float]) -> Float[Tensor, "b ..."]:
    """Return the weighted sum of branches that are concatenated along the batch."""
    if len(weights) == 1:
        return outputs
    first, *others = outputs.chunk(len(weights))
    total = first * weights[0]
    for output, weight in zip(others, weights[1:], strict=True):
        if weight != 0:
            total = total.add(output, alpha=weight)
    return total


def rescale_std(
    guided: Float[Tensor, "b ..."], given: Float[Tensor, "b ..."], phi: float, *, spread: int | None = None
) -> Float[Tensor, "b ..."]:
    """Scale `guided` towards the standard deviation of `given`, by a share `phi` (arXiv:2305.08891, section 3.4).

    The standard deviation is that of the first `spread` values of the last axis, or of all.
    """
    ratio = given[..., :spread].std(-1, keepdim=True) / guided[..., :spread].std(-1, keepdim=True).clamp(min=1e-8)
    return guided * (phi * ratio + 1 - phi)


def batch_branches(branches: Sequence[GuidanceBranch], batch: int) -> FusedConditions:
    """Concatenate the conditions of all branches, of `batch` items each, along the batch."""
    return concat_conditions([branch.fused for branch in branches], batch)


def concat_conditions(fused: Sequence[FusedConditions], batch: int) -> FusedConditions:
    """Concatenate conditions of `batch` items each; pad tokens and frames at the end, fill missing slots with zeros."""
    return FusedConditions(
        cross=_stack_tokens([f.cross for f in fused], batch),
        prepend=_stack_tokens([f.prepend for f in fused], batch),
        add=_stack_vectors([f.add for f in fused], batch),
        concat=_stack_vectors([f.concat for f in fused], batch),
        global_vector=_stack_vectors([f.global_vector for f in fused], batch),
        interpolated=_stack_curves([f.interpolated for f in fused]),
    )


def _stack_tokens(parts: Sequence[MaskedSequence | None], batch: int) -> MaskedSequence | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    like, longest = present[0], max(part.x.shape[1] for part in present)
    empty = MaskedSequence(like.x.new_zeros(batch, 0, like.x.shape[-1]), like.mask.new_zeros(batch, 0))
    filled = [empty if part is None else part for part in parts]
    x = torch.cat([F.pad(part.x, (0, 0, 0, longest - part.x.shape[1])) for part in filled])
    mask = torch.cat([F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in filled])
    frames = max((part.bias.shape[2] for part in present if part.bias is not None), default=None)
    if frames is None:
        return MaskedSequence(x, mask)
    biases = [like.x.new_zeros(batch, part.x.shape[1], frames) if part.bias is None else part.bias for part in filled]
    padded = [F.pad(b, (0, frames - b.shape[2], 0, longest - b.shape[1]), value=-torch.inf) for b in biases]
    return MaskedSequence(x, mask, torch.cat(padded))


def _stack_vectors(parts: Sequence[Tensor | None], batch: int) -> Tensor | None:
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    vectors = [like.new_zeros(batch, *like.shape[1:]) if part is None else part for part in parts]
    if like.dim() == 3:
        longest = max(part.shape[1] for part in vectors)
        vectors = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in vectors]
    return torch.cat(vectors)


def _stack_curves(parts: Sequence[tuple[InterpolatedCondition, ...] | None]) -> tuple[InterpolatedCondition, ...] | None:
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    zeros = tuple(replace(curve, x=torch.zeros_like(curve.x)) for curve in like)
    stacked = []
    for curves in zip(*[zeros if part is None else part for part in parts], strict=True):
        longest = max(curve.x.shape[1] for curve in curves)
        x = torch.cat([F.pad(curve.x, (0, 0, 0, longest - curve.x.shape[1])) for curve in curves])
        stacked.append(InterpolatedCondition(x, torch.cat([curve.lengths for curve in curves]), curves[0].resize))
    return tuple(stacked)
