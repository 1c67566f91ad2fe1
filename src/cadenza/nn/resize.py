"""Sequences of vectors fitted to another length, each item of a batch by its own lengths."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def resample_sequence(
    x: Float[Tensor, "b n d"],
    lengths: Int[Tensor, " b"],
    to: Int[Tensor, " b"],
    *,
    size: int,
    mode: Literal["linear", "nearest"],
) -> Float[Tensor, "b m d"]:
    """The first `lengths` vectors of each item over its first `to` of `size` places; the last one after them.

    As torch's `interpolate` would do for each item by itself (`linear` without aligned corners).
    """
    place = torch.arange(size, device=x.device)[None]
    lengths, to = lengths.clamp(min=1)[:, None], to.clamp(min=1)[:, None]
    if mode == "nearest":
        return _taken(x, torch.minimum(place * lengths // to, lengths - 1))
    where = ((place + 0.5) * (lengths / to) - 0.5).clamp(min=0)
    first = torch.minimum(where.long(), lengths - 1)
    share = (where - first).clamp(max=1)[..., None].to(x.dtype)
    return torch.lerp(_taken(x, first), _taken(x, torch.minimum(first + 1, lengths - 1)), share)


def _taken(x: Float[Tensor, "b n d"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
