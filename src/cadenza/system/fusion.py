"""Fusion: routes conditions to the slots of a generator, with absent values and values that change over time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
_ROUNDING = 1e-6  # weights below this are rounding errors


@dataclass(frozen=True)
class ClipFrames:
    """Frames of the longest clip of a batch, of each clip (None: as the longest), and per second (None: unknown)."""

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
    """Return the conditions of each slot in the order of `fusion`; a null replaces values that are absent or not kept.

    `keep` serves dropout in training and the branches of guidance. The clips have `lengths` frames (default: `frames`),
    `rate` per second, which values that change over time need. Raises RequestError if a condition does not suit its slot.
    """
    keep, clip = keep or {}, ClipFrames(frames, lengths, rate)
    slots: dict[str, MaskedSequence | Tensor | tuple[InterpolatedCondition, ...]] = {}
    for slot, routes in fusion.routes_by_slot().items():
        values = [(_dropped(conditions[route.id], keep.get((slot, route.id))), route) for route in routes]
        if slot in ("cross", "prepend"):
            slots[slot] = _concat_tokens([_tokens(condition, clip, route, slot) for condition, route in values])
        elif slot == "global":
            slots["global_vector"] = torch.cat(
                [_tokens(condition, clip, route, slot).x[:, 0] for condition, route in values], -1
            )
        else:
            vectors = [_per_frame(condition, clip, route, slot) for condition, route in values if route.align == "frames"]
            if vectors:
                slots[slot] = torch.cat(vectors, -1) if slot == "concat" else cast(Tensor, sum(vectors))
            if curves := [_curve(condition, clip, route) for condition, route in values if route.align == "steps"]:
                slots["interpolated"] = tuple(curves)
    return FusedConditions(**slots)  # type: ignore[arg-type]


def branch_keep_mask(fusion: FusionSpec, ids: Sequence[Collection[str]], device: torch.device | str) -> KeepMask:
    """Return the mask of a guidance branch: it keeps the `ids` of each item, and every route without guidance."""
    return {
        (slot, route.id): torch.tensor([route.id in names or not route.guided for names in ids], device=device)
        for slot, routes in fusion.routes_by_slot().items()
        for route in routes
    }


def _dropped(condition: Condition, keep: Bool[Tensor, " b"] | None) -> Condition:
    return condition if keep is None else replace(condition, present=condition.present & keep)


def _tokens(condition: Condition, clip: ClipFrames, route: Route, slot: Slot) -> MaskedSequence:
    """Return a condition as tokens: a null replaces absent values, or follows values that change over time."""
    if condition.spans is None:
        return _replace_absent(condition)
    if slot != "cross":
        raise RequestError(
            f"fusion.{slot}: '{route.id}' changes over time, but this slot holds one value for the whole clip; give one "
            "value, or put it in cross, add or concat"
        )
    weights, null_weights = _span_weights(condition, clip, route, slot)
    bias = weights.log().repeat_interleave(condition.embeddings.shape[1] // weights.shape[1], 1)
    values = MaskedSequence(condition.embeddings, condition.mask, bias)
    if condition.null_embedding is None:
        return values
    null = condition.null_embedding.to(values.x).expand(len(values.x), -1, -1)
    real = torch.ones(null.shape[:2], dtype=torch.bool, device=null.device)
    null_bias = null_weights.log()[:, None].expand(-1, null.shape[1], -1)
    return _concat_tokens([values, MaskedSequence(null, real, null_bias)])


def _concat_tokens(parts: Sequence[MaskedSequence]) -> MaskedSequence:
    """Concatenate tokens; if some have a bias, it is zero in every frame for the others."""
    x, mask = torch.cat([part.x for part in parts], 1), torch.cat([part.mask for part in parts], 1)
    frames = next((part.bias.shape[2] for part in parts if part.bias is not None), None)
    if frames is None:
        return MaskedSequence(x, mask)
    biases = [part.x.new_zeros(*part.mask.shape, frames) if part.bias is None else part.bias.to(x.dtype) for part in parts]
    return MaskedSequence(x, mask, torch.cat(biases, 1))


def _per_frame(condition: Condition, clip: ClipFrames, route: Route, slot: Slot) -> Float[Tensor, "b f d"]:
    """Return a condition as one vector per frame."""
    if condition.spans is None:
        return _resize(_replace_absent(condition, per_frame=True), clip, route, slot)
    weights, null_weights = _span_weights(condition, clip, route, slot)
    b, s = weights.shape[:2]
    x = condition.embeddings
    spans = MaskedSequence(x.reshape(b * s, -1, x.shape[-1]), condition.mask.reshape(b * s, -1))
    lengths = None if clip.lengths is None else clip.lengths.repeat_interleave(s)
    vectors = _resize(spans, replace(clip, lengths=lengths), route, slot).unflatten(0, (b, s))
    x = (vectors * weights.to(vectors.dtype)[..., None]).sum(1)
    if condition.null_embedding is None:
        return x
    return x + null_weights.to(x.dtype)[..., None] * condition.null_embedding[:1].to(x.dtype)


def _curve(condition: Condition, clip: ClipFrames, route: Route) -> InterpolatedCondition:
    """Return a condition that the generator interpolates over its steps."""
    mode = "linear" if route.resize == "linear" else "nearest"
    if condition.spans is not None:
        x = _per_frame(condition, clip, route, "add")
        return InterpolatedCondition(x, _lengths(clip, x), mode)
    part = _replace_absent(condition, per_frame=True)
    return InterpolatedCondition(torch.where(part.mask[..., None], part.x, 0), part.mask.sum(1), mode)


def _span_weights(
    condition: Condition, clip: ClipFrames, route: Route, slot: Slot
) -> tuple[Float[Tensor, "b s f"], Float[Tensor, "b f"]]:
    """Return the weight of each value and of the null in each frame; together they are 1.

    Values that overlap share a frame; at a boundary, one value fades linearly into the other.
    """
    assert condition.spans is not None
    if clip.rate is None:
        raise RequestError(f"fusion.{slot}: '{route.id}' changes over time, but the frame rate is not known; give `rate`")
    start, end, fade_in, fade_out = condition.spans[..., None].unbind(2)
    time = (torch.arange(clip.longest, device=start.device) + 0.5) / clip.rate
    rise = ((time - start) / fade_in.clamp(min=1e-9) + 0.5).clamp(0, 1)
    fall = ((end - time) / fade_out.clamp(min=1e-9) + 0.5).clamp(0, 1)
    real = condition.mask.unflatten(1, (start.shape[1], -1)).any(-1) & condition.present[:, None]
    weights = torch.where(real[..., None], torch.minimum(rise, fall), 0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    null_weights = 1 - weights.sum(1)
    return weights, torch.where(null_weights < _ROUNDING, 0, null_weights)


def _replace_absent(condition: Condition, *, per_frame: bool = False) -> MaskedSequence:
    """Replace absent values by the null; `per_frame` repeats a null of one position in every frame."""
    present, x, mask, null = condition.present[:, None], condition.embeddings, condition.mask, condition.null_embedding
    if null is None:
        return MaskedSequence(torch.where(present[..., None], x, 0), mask & present)
    if per_frame and null.shape[0] == 1:
        null = null.expand(x.shape[1], -1)
    size = max(x.shape[1], null.shape[0])
    x, mask = F.pad(x, (0, 0, 0, size - x.shape[1])), F.pad(mask, (0, size - mask.shape[1]))
    null_x = F.pad(null, (0, 0, 0, size - null.shape[0])).to(x.dtype)
    null_mask = torch.arange(size, device=x.device) < null.shape[0]
    return MaskedSequence(torch.where(present[..., None], x, null_x), torch.where(present, mask, null_mask))


def _resize(part: MaskedSequence, clip: ClipFrames, route: Route, slot: Slot) -> Float[Tensor, "b f d"]:
    """Return one vector per frame of the longest clip, resized as the route says."""
    x, frames = torch.where(part.mask[..., None], part.x, 0), clip.longest
    if x.shape[1] == 1:  # one vector for every frame
        return x.expand(-1, frames, -1)
    if route.resize in ("linear", "nearest"):
        real_lengths = part.mask.long().cumsum(1).argmax(1) + 1  # up to the last real vector
        return resample_sequence(x, real_lengths, _lengths(clip, x), size=frames, mode=route.resize)
    if x.shape[1] == frames:
        return x
    if route.resize is None:
        raise RequestError(
            f"fusion.{slot}: '{route.id}' gives {x.shape[1]} frames where the clip has {frames}; "
            "give it the same length or set resize: linear, nearest or cut"
        )
    if x.shape[1] < frames:
        raise RequestError(f"fusion.{slot}: '{route.id}' gives {x.shape[1]} frames, too few for a clip of {frames}")
    return x[:, :frames]


def _lengths(clip: ClipFrames, x: Float[Tensor, "b n d"]) -> Int[Tensor, " b"]:
    if clip.lengths is not None:
        return clip.lengths.to(x.device)
    return torch.full((len(x),), clip.longest, dtype=torch.long, device=x.device)
