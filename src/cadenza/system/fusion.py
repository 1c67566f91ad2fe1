"""Fusion: conditions into the slots of a generator, absence included."""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.types import Condition, Fused, Slot, Tokens
from cadenza.system.spec import FusionSpec, Route

Keep = Mapping[tuple[Slot, str], Bool[Tensor, " b"]]  # False drops the value of an item, as if it were absent


def fuse(conditions: Mapping[str, Condition], fusion: FusionSpec, *, frames: int, keep: Keep | None = None) -> Fused:
    """Each slot's conditions in the order of `fusion`; values absent or not kept are replaced by their null.

    The same mechanism serves missing metadata, dropout in training and the branches of guidance.
    """
    keep = keep or {}
    slots: dict[str, Tokens | Tensor] = {}
    for slot, routes in fusion.slots().items():
        framed = slot in ("add", "concat")
        parts = [_without_dropped(conditions[route.id], keep.get((slot, route.id)), framed=framed) for route in routes]
        if slot in ("cross", "prepend"):
            slots[slot] = Tokens(torch.cat([part.x for part in parts], 1), torch.cat([part.mask for part in parts], 1))
        elif slot == "global":
            slots["glob"] = torch.cat([part.x[:, 0] for part in parts], -1)
        else:
            spread = [_over_frames(part, route, slot, frames) for part, route in zip(parts, routes, strict=True)]
            slots[slot] = torch.cat(spread, -1) if slot == "concat" else cast(Tensor, sum(spread))
    return Fused(**slots)  # type: ignore[arg-type]


def drop_all(fusion: FusionSpec, items: int, device: torch.device | str) -> Keep:
    """The absence map of the unconditional branch."""
    nothing = torch.zeros(items, dtype=torch.bool, device=device)
    return dict.fromkeys(fusion.pairs(), nothing)


def _without_dropped(condition: Condition, keep: Bool[Tensor, " b"] | None, *, framed: bool) -> Tokens:
    """The values that are there, the null in place of the others; where `framed`, a null of one position in every frame."""
    here = condition.present if keep is None else condition.present & keep
    x, mask, null = condition.x, condition.mask, condition.null
    if null is None:
        return Tokens(torch.where(here[:, None, None], x, 0), mask & here[:, None])
    if framed and null.shape[0] == 1:
        null = null.expand(x.shape[1], -1)
    if x.shape[1] < null.shape[0]:
        missing = null.shape[0] - x.shape[1]
        x, mask = F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    spare = x.shape[1] - null.shape[0]
    null_x = F.pad(null, (0, 0, 0, spare)).to(x.dtype)
    null_mask = torch.arange(x.shape[1], device=x.device) < null.shape[0]
    return Tokens(torch.where(here[:, None, None], x, null_x), torch.where(here[:, None], mask, null_mask))


def _over_frames(part: Tokens, route: Route, slot: Slot, frames: int) -> Float[Tensor, "b f d"]:
    x = torch.where(part.mask[..., None], part.x, 0)
    if x.shape[1] == 1:  # a vector holds for every frame
        return x.expand(-1, frames, -1)
    if x.shape[1] == frames:
        return x
    if route.resize is None:
        raise RequestError(
            f"fusion.{slot}: '{route.id}' gives {x.shape[1]} frames where the clip has {frames}; "
            "give it the same length or set resize: linear, nearest or cut"
        )
    if route.resize == "cut":  # made for the longest clip
        if x.shape[1] < frames:
            raise RequestError(f"fusion.{slot}: '{route.id}' gives {x.shape[1]} frames, too few for a clip of {frames}")
        return x[:, :frames]
    return F.interpolate(x.transpose(1, 2), size=frames, mode=route.resize).transpose(1, 2)
