"""Guidance: a weighted sum of what the model says under several conditions, evaluated as one batch."""

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
ALL = "all"  # stands for every condition in `weights`
TOGETHER = "+"  # between ids that stand together


class Guidance(Spec):
    """How strongly a request is followed; a bare number stands for `scale`.

    `scale` goes from the answer without conditions (0) past the one with them (1); the system's own if None. `emphasis`
    multiplies what an id adds to all others, before that (with one id the double guidance of MusicGen-Style). `weights`
    is the sum itself: the weight of the answer to each id alone, to ids together ("melody+chords") or to `all`, and the
    rest of 1 to the answer without any. `negative` is an item, or one each, in place of no conditions. Guidance holds in
    the part of the clip, or of a sampler's steps, that `interval` gives, at a share of its strength that goes from the
    first to the second of `strength` by `schedule`; elsewhere, and at share 0, the answer to all conditions holds.
    `rescale` is how far the spread of the result is brought back to that of this answer (arXiv:2305.08891, phi).
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
        several = value if isinstance(value, list | tuple) else [] if value is None else [value]
        items = [{"prompt": one} if isinstance(one, str) else {} if one is None else one for one in several]
        for item in items:
            if not isinstance(item, Mapping):
                raise ValueError(f"an item is a text or a mapping of ids to values, not {type(item).__name__}")
        return tuple(dict(item) for item in items)

    @model_validator(mode="after")
    def _consistent(self) -> "Guidance":
        if self.weights and (self.scale is not None or self.id_scales):
            raise ValueError("weights are the whole sum; leave out scale and emphasis, or leave out weights")
        if self.interval[0] >= self.interval[1]:
            raise ValueError(f"interval: must go from less to more, got {list(self.interval)}")
        return self

    @property
    def is_scheduled(self) -> bool:
        """Whether it is not the same in all frames or steps."""
        return self.schedule != "constant" or self.interval != (0.0, 1.0)


@dataclass(frozen=True)
class GuidanceTerm:
    """One answer of the sum: to the conditions of `ids`, or without any where None; `plain` is its weight without guidance."""

    ids: frozenset[str] | None
    weight: float
    unguided_weight: float = 0.0


def expand_guidance(guidance: Guidance, scale: float, ids: Collection[str], told: Collection[str]) -> list[GuidanceTerm]:
    """What is asked of the model, each once; `told` are the ids, of all there are, of which some item says something.

    Raises RequestError for an id that there is not.
    """
    every, known = frozenset(told), frozenset(ids)
    sums: dict[frozenset[str] | None, float] = {every: 0.0}

    def add(names: frozenset[str], weight: float) -> None:
        sums[names & every] = sums.get(names & every, 0.0) + weight

    if guidance.weights:
        for name, weight in guidance.weights.items():
            add(known if name == ALL else _known(name, known), weight)
    else:
        scale = scale if guidance.scale is None else guidance.scale
        add(known, scale)
        for name, times in guidance.id_scales.items():
            add(known, scale * (times - 1))
            add(known - _known(name, known), -scale * (times - 1))
    sums[None] = 1 - sum(sums.values())
    if not guidance.negative and frozenset() in sums:  # nothing is told either way
        sums[None] += sums.pop(frozenset())
        return [GuidanceTerm(names, weight, float(names == (every or None))) for names, weight in sums.items()]
    return [GuidanceTerm(names, weight, float(names == every)) for names, weight in sums.items()]


def _known(names: str, ids: frozenset[str]) -> frozenset[str]:
    found = frozenset(name.strip() for name in names.split(TOGETHER))
    for name in sorted(found - ids):
        raise RequestError(f"guidance: no condition called '{name}'.{did_you_mean(name, sorted(ids))}")
    return found


def guidance_schedule(guidance: Guidance, lengths: Int[Tensor, " b"], *, size: int) -> Float[Tensor, "b f"] | None:
    """The share of guidance in each of `lengths` frames or steps; None where it is 1 throughout."""
    if not guidance.is_scheduled:
        return None
    done = (torch.arange(size, device=lengths.device) + 0.5) / lengths.clamp(min=1)[:, None]
    first, last = guidance.strength
    share = torch.ones_like(done)
    if guidance.schedule == "linear":
        share = first + (last - first) * done
    elif guidance.schedule == "cosine":
        share = last + (first - last) * (1 + (math.pi * done).cos()) / 2
    low, high = guidance.interval
    return torch.where((done >= low) & (done < high), share, 0)


def cfg_branches(given: FusedConditions, null: FusedConditions, scale: float) -> list[GuidanceBranch]:
    """null + scale * (given - null), arXiv:2207.12598 with w = scale - 1; branches without weight are left out."""
    return nonzero_branches([GuidanceBranch(scale, given, 1.0), GuidanceBranch(1 - scale, null)])


def nonzero_branches(branches: Sequence[GuidanceBranch], *, plain: bool = False) -> list[GuidanceBranch]:
    """The branches that have weight, or may get some where `plain` is asked for; their weights must sum to 1."""
    total = sum(branch.weight for branch in branches)
    if abs(total - 1) > 1e-4:
        raise RequestError(f"the weights of guidance sum to {total:g}, not to 1: {[branch.weight for branch in branches]}")
    return [branch for branch in branches if branch.weight != 0 or (plain and branch.unguided_weight != 0)]


@dataclass(frozen=True)
class GuidanceMixer:
    """The weights of branches that lie one after the other in a batch, with guidance and without, and how to rescale."""

    weights: tuple[float, ...]
    plain: tuple[float, ...] = ()
    rescale: float = 0.0

    @classmethod
    def of(cls, branches: Sequence[GuidanceBranch], rescale: float = 0.0) -> "GuidanceMixer":
        return cls(tuple(branch.weight for branch in branches), tuple(branch.unguided_weight for branch in branches), rescale)

    def __call__(
        self, outputs: Float[Tensor, "nb *shape v"], strength: Float[Tensor, " b"] | None = None, *, spread: int | None = None
    ) -> Float[Tensor, "b *shape v"]:
        """The guided outputs; rescaled by the standard deviation of the first `spread` values of the last axis, or all."""
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
    """The weighted sum of branches that lie one after the other in the batch."""
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
    """`guided`, its standard deviation over the last axis a share `phi` of the way back to that of `given`."""
    ratio = given[..., :spread].std(-1, keepdim=True) / guided[..., :spread].std(-1, keepdim=True).clamp(min=1e-8)
    return guided * (phi * ratio + 1 - phi)


def adaptive_projected_guidance(
    given: Float[Tensor, "b ..."],
    null: Float[Tensor, "b ..."],
    scale: float,
    *,
    running: Float[Tensor, "b ..."] | None = None,
    momentum: float = 0.0,
    parallel: float = 0.0,
    largest: float | None = None,
) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
    """Adaptive projected guidance (arXiv:2410.02416), and what the next step takes as `running`.

    The difference to `null`, with a share `momentum` (negative in the paper) of the one before and no longer than
    `largest`, is split by the direction of `given`; the part along it, which oversaturates, counts a share `parallel`.
    """
    change = given - null
    if running is not None:
        change = change + momentum * running
    kept, axes = change, tuple(range(1, change.dim()))
    if largest is not None:
        length = change.square().sum(axes, keepdim=True).sqrt()
        change = change * (largest / length.clamp(min=1e-12)).clamp(max=1)
    along = (change * given).sum(axes, keepdim=True) / given.square().sum(axes, keepdim=True).clamp(min=1e-24) * given
    return given + (scale - 1) * (change - along + parallel * along), kept


def batch_branches(branches: Sequence[GuidanceBranch], batch: int) -> FusedConditions:
    """The conditions of all branches as one batch, padded where some have more tokens or a slot that others lack."""
    fused = [branch.fused for branch in branches]
    return FusedConditions(
        cross=_stack_tokens([f.cross for f in fused], batch),
        prepend=_stack_tokens([f.prepend for f in fused], batch),
        add=_stack_vectors([f.add for f in fused], batch),
        concat=_stack_vectors([f.concat for f in fused], batch),
        global_vector=_stack_vectors([f.global_vector for f in fused], batch),
        interpolated=_stack_curves([f.interpolated for f in fused]),
    )


def _stack_tokens(parts: Sequence[MaskedSequence | None], batch: int) -> MaskedSequence | None:
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    longest = max(part.x.shape[1] for part in parts if part is not None)
    none = MaskedSequence(some.x.new_zeros(batch, 0, some.x.shape[-1]), some.mask.new_zeros(batch, 0))
    padded = [none if part is None else part for part in parts]
    x = [F.pad(part.x, (0, 0, 0, longest - part.x.shape[1])) for part in padded]
    mask = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in padded]
    frames = next((part.bias.shape[2] for part in padded if part.bias is not None), None)
    if frames is None:
        return MaskedSequence(torch.cat(x), torch.cat(mask))
    even = [some.x.new_zeros(batch, part.x.shape[1], frames) if part.bias is None else part.bias for part in padded]
    bias = [F.pad(part, (0, 0, 0, longest - part.shape[1]), value=-torch.inf) for part in even]
    return MaskedSequence(torch.cat(x), torch.cat(mask), torch.cat(bias))


def _stack_vectors(parts: Sequence[Tensor | None], batch: int) -> Tensor | None:
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    return torch.cat([some.new_zeros(batch, *some.shape[1:]) if part is None else part for part in parts])


def _stack_curves(parts: Sequence[tuple[InterpolatedCondition, ...] | None]) -> tuple[InterpolatedCondition, ...] | None:
    """The curves of all branches, in order; a branch without any has zeros."""
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    none = tuple(replace(curve, x=torch.zeros_like(curve.x)) for curve in some)
    each = [none if part is None else part for part in parts]
    return tuple(
        InterpolatedCondition(
            torch.cat([F.pad(curve.x, (0, 0, 0, max(c.x.shape[1] for c in curves) - curve.x.shape[1])) for curve in curves]),
            torch.cat([curve.lengths for curve in curves]),
            curves[0].resize,
        )
        for curves in zip(*each, strict=True)
    )
