"""Guidance: a weighted sum of what the model says under several conditions, evaluated as one batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.types import Branch, Fused, Tokens


def classifier_free(given: Fused, null: Fused, scale: float) -> list[Branch]:
    """null + scale * (given - null), arXiv:2207.12598 with w = scale - 1; branches without weight are left out."""
    return active([Branch(scale, given), Branch(1 - scale, null)])


def active(branches: Sequence[Branch]) -> list[Branch]:
    """The branches that have weight; their weights must sum to 1."""
    total = sum(branch.weight for branch in branches)
    if abs(total - 1) > 1e-4:
        raise RequestError(f"the weights of guidance sum to {total:g}, not to 1: {[branch.weight for branch in branches]}")
    return [branch for branch in branches if branch.weight != 0]


def combine(outputs: Float[Tensor, "nb ..."], weights: Sequence[float]) -> Float[Tensor, "b ..."]:
    """The weighted sum of branches that lie one after the other in the batch."""
    if len(weights) == 1:
        return outputs
    first, *others = outputs.chunk(len(weights))
    total = first * weights[0]
    for output, weight in zip(others, weights[1:], strict=True):
        total = total.add(output, alpha=weight)
    return total


def stack(branches: Sequence[Branch], batch: int) -> Fused:
    """The conditions of all branches as one batch, padded where some have more tokens or a slot that others lack."""
    fused = [branch.fused for branch in branches]
    return Fused(
        cross=_stack_tokens([f.cross for f in fused], batch),
        prepend=_stack_tokens([f.prepend for f in fused], batch),
        add=_stack_vectors([f.add for f in fused], batch),
        concat=_stack_vectors([f.concat for f in fused], batch),
        glob=_stack_vectors([f.glob for f in fused], batch),
    )


def _stack_tokens(parts: Sequence[Tokens | None], batch: int) -> Tokens | None:
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    longest = max(part.x.shape[1] for part in parts if part is not None)
    none = Tokens(some.x.new_zeros(batch, 0, some.x.shape[-1]), some.mask.new_zeros(batch, 0))
    padded = [none if part is None else part for part in parts]
    x = [F.pad(part.x, (0, 0, 0, longest - part.x.shape[1])) for part in padded]
    mask = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in padded]
    return Tokens(torch.cat(x), torch.cat(mask))


def _stack_vectors(parts: Sequence[Tensor | None], batch: int) -> Tensor | None:
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    return torch.cat([some.new_zeros(batch, *some.shape[1:]) if part is None else part for part in parts])
