"""Fusion: conditions into the slots of a generator, absence and change over time included."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.types import Condition, FusedConditions, InterpolatedCondition, MaskedSequence, Slot
from cadenza.nn.conditioning import resample_sequence
from cadenza.system.spec import FusionSpec, Route

KeepMask = Mapping[tuple[Slot, str], Bool[Tensor, " b"]]  # False drops the value of an item, as if it were absent
_NOTHING = 1e-6  # weights below this are rounding


@dataclass(frozen=True)
class ClipFrames:
    """The frames of a batch of clips: how many the longest has, and each, and how many make a second."""

    longest: int
    lengths: Int[Tensor, " b"] | None = None
    rate: float | None = None


def fuse(
    conditions: Mapping[str, Condition],
    fusion: FusionSpec,
    *,
    frames: int,
    keep: KeepMask | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    rate: float | None = None,
) -> FusedConditions:
    """Each slot's conditions in the order of `fusion`; values absent or not kept are replaced by their null.

    The same mechanism serves missing metadata, dropout in training and the branches of guidance. Clips of `lengths`
    frames, all of them `frames` where none are given, at `rate` a second, which values that change over time need.
    """
    keep, clip = keep or {}, ClipFrames(frames, lengths, rate)
    slots: dict[str, MaskedSequence | Tensor | tuple[InterpolatedCondition, ...]] = {}
    for slot, routes in fusion.routes_by_slot().items():
        each = [(route, conditions[route.id], keep.get((slot, route.id))) for route in routes]
        if slot in ("cross", "prepend", "global"):
            parts = [_tokens(condition, kept, clip, f"fusion.{slot}: '{route.id}'", slot) for route, condition, kept in each]
            slots["global_vector" if slot == "global" else slot] = (
                torch.cat([part.x[:, 0] for part in parts], -1) if slot == "global" else _joined(parts)
            )
            continue
        spread = [_spread(condition, kept, clip, route, slot) for route, condition, kept in each if route.align == "frames"]
        if spread:
            slots[slot] = torch.cat(spread, -1) if slot == "concat" else cast(Tensor, sum(spread))
        if curves := [_curve(condition, kept, clip, route) for route, condition, kept in each if route.align == "steps"]:
            slots["interpolated"] = tuple(curves)
    return FusedConditions(**slots)  # type: ignore[arg-type]


def drop_all(fusion: FusionSpec, items: int, device: torch.device | str) -> KeepMask:
    """The absence map of nothing at all."""
    nothing = torch.zeros(items, dtype=torch.bool, device=device)
    return dict.fromkeys(fusion.slot_ids(), nothing)


def branch_keep_mask(fusion: FusionSpec, named: Sequence[Collection[str]], device: torch.device | str) -> KeepMask:
    """The absence map of a branch of guidance: what each item keeps by name, and what guidance leaves alone."""
    return {
        (slot, route.id): torch.tensor([route.id in names or not route.guided for names in named], device=device)
        for slot, routes in fusion.routes_by_slot().items()
        for route in routes
    }


def _tokens(condition: Condition, keep: Bool[Tensor, " b"] | None, clip: ClipFrames, where: str, slot: Slot) -> MaskedSequence:
    """A condition where order is all: with the null in its place, or after it where values change."""
    if condition.spans is None:
        return _without_dropped(condition, keep, framed=False)
    if slot != "cross":
        raise RequestError(
            f"{where} changes over time, but this slot holds one value for the whole clip; give one value, or put it in "
            "cross, add or concat"
        )
    weights, rest = _weights(condition, keep, clip, where)
    bias = weights.log().repeat_interleave(condition.embeddings.shape[1] // weights.shape[1], 1)
    if condition.null_embedding is None:
        return MaskedSequence(condition.embeddings, condition.mask, bias)
    null = condition.null_embedding.to(condition.embeddings).expand(len(rest), -1, -1)
    there = torch.ones(null.shape[:2], dtype=torch.bool, device=null.device)
    around = rest.log()[:, None].expand(-1, null.shape[1], -1)
    return _joined([MaskedSequence(condition.embeddings, condition.mask, bias), MaskedSequence(null, there, around)])


def _joined(parts: Sequence[MaskedSequence]) -> MaskedSequence:
    """Tokens one after another; where some have a bias, the others weigh the same in every frame."""
    x, mask = torch.cat([part.x for part in parts], 1), torch.cat([part.mask for part in parts], 1)
    frames = next((part.bias.shape[2] for part in parts if part.bias is not None), None)
    if frames is None:
        return MaskedSequence(x, mask)
    even = [part.x.new_zeros(*part.mask.shape, frames) if part.bias is None else part.bias.to(x.dtype) for part in parts]
    return MaskedSequence(x, mask, torch.cat(even, 1))


def _spread(
    condition: Condition, keep: Bool[Tensor, " b"] | None, clip: ClipFrames, route: Route, slot: Slot
) -> Float[Tensor, "b f d"]:
    """A condition as one vector a frame."""
    if condition.spans is None:
        return _over_frames(_without_dropped(condition, keep, framed=True), route, slot, clip)
    weights, rest = _weights(condition, keep, clip, f"fusion.{slot}: '{route.id}'")
    b, s = weights.shape[:2]
    apart = MaskedSequence(
        condition.embeddings.reshape(b * s, -1, condition.embeddings.shape[-1]), condition.mask.reshape(b * s, -1)
    )
    lengths = None if clip.lengths is None else clip.lengths.repeat_interleave(s)
    each = _over_frames(apart, route, slot, ClipFrames(clip.longest, lengths)).unflatten(0, (b, s))
    x = (each * weights.to(each.dtype)[..., None]).sum(1)
    return x if condition.null_embedding is None else x + rest.to(x.dtype)[..., None] * condition.null_embedding[:1].to(x.dtype)


def _curve(condition: Condition, keep: Bool[Tensor, " b"] | None, clip: ClipFrames, route: Route) -> InterpolatedCondition:
    """A condition for the generator to spread over its steps."""
    mode = "linear" if route.resize == "linear" else "nearest"
    if condition.spans is not None:
        x = _spread(condition, keep, clip, route, "add")
        return InterpolatedCondition(x, _lengths(clip, x), mode)
    part = _without_dropped(condition, keep, framed=True)
    return InterpolatedCondition(torch.where(part.mask[..., None], part.x, 0), part.mask.sum(1), mode)


def _weights(
    condition: Condition, keep: Bool[Tensor, " b"] | None, clip: ClipFrames, where: str
) -> tuple[Float[Tensor, "b s f"], Float[Tensor, "b f"]]:
    """How much of each value holds in each frame, and how much of none; together 1.

    Values that overlap share a frame; where two meet, one fades linearly into the other.
    """
    assert condition.spans is not None
    if clip.rate is None:
        raise RequestError(f"{where} changes over time, but the frames of the clip have no rate; say how many make a second")
    start, end, fade_in, fade_out = condition.spans[..., None].unbind(2)
    time = (torch.arange(clip.longest, device=start.device) + 0.5) / clip.rate
    rise = ((time - start) / fade_in.clamp(min=1e-9) + 0.5).clamp(0, 1)
    fall = ((end - time) / fade_out.clamp(min=1e-9) + 0.5).clamp(0, 1)
    here = condition.present if keep is None else condition.present & keep
    real = condition.mask.unflatten(1, (start.shape[1], -1)).any(-1) & here[:, None]
    weights = torch.where(real[..., None], torch.minimum(rise, fall), 0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    rest = 1 - weights.sum(1)
    return weights, torch.where(rest < _NOTHING, 0, rest)


def _without_dropped(condition: Condition, keep: Bool[Tensor, " b"] | None, *, framed: bool) -> MaskedSequence:
    """The values that are there, the null in place of the others; where `framed`, a null of one position in every frame."""
    here = condition.present if keep is None else condition.present & keep
    x, mask, null = condition.embeddings, condition.mask, condition.null_embedding
    if null is None:
        return MaskedSequence(torch.where(here[:, None, None], x, 0), mask & here[:, None])
    if framed and null.shape[0] == 1:
        null = null.expand(x.shape[1], -1)
    if x.shape[1] < null.shape[0]:
        missing = null.shape[0] - x.shape[1]
        x, mask = F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    spare = x.shape[1] - null.shape[0]
    null_x = F.pad(null, (0, 0, 0, spare)).to(x.dtype)
    null_mask = torch.arange(x.shape[1], device=x.device) < null.shape[0]
    return MaskedSequence(torch.where(here[:, None, None], x, null_x), torch.where(here[:, None], mask, null_mask))


def _over_frames(part: MaskedSequence, route: Route, slot: Slot, clip: ClipFrames) -> Float[Tensor, "b f d"]:
    x, frames = torch.where(part.mask[..., None], part.x, 0), clip.longest
    if x.shape[1] == 1:  # a vector holds for every frame
        return x.expand(-1, frames, -1)
    if route.resize in ("linear", "nearest"):
        own = part.mask.long().cumsum(1).argmax(1) + 1  # up to the last that is real
        return resample_sequence(x, own, _lengths(clip, x), size=frames, mode=route.resize)
    if x.shape[1] == frames:
        return x
    if route.resize is None:
        raise RequestError(
            f"fusion.{slot}: '{route.id}' gives {x.shape[1]} frames where the clip has {frames}; "
            "give it the same length or set resize: linear, nearest or cut"
        )
    if x.shape[1] < frames:  # made for the longest clip
        raise RequestError(f"fusion.{slot}: '{route.id}' gives {x.shape[1]} frames, too few for a clip of {frames}")
    return x[:, :frames]


def _lengths(clip: ClipFrames, x: Float[Tensor, "b n d"]) -> Int[Tensor, " b"]:
    if clip.lengths is not None:
        return clip.lengths.to(x.device)
    return torch.full((len(x),), clip.longest, dtype=torch.long, device=x.device)
