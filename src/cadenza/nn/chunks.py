"""A clip in overlapping chunks, each worked on alone, and their sum (Défossez et al. 2022, section 3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """A chunk of `length` samples begins every `stride` samples while there are samples left; the last are shorter."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"chunks of {self.length} samples every {self.stride} leave gaps or overlap wholly")

    def spans(self, samples: int) -> list[tuple[int, int]]:
        """Start and stop of every chunk of a clip."""
        return [(start, min(start + self.length, samples)) for start in range(0, samples, self.stride)]


def overlap_add(chunks: Sequence[Float[Tensor, "b c _"]], stride: int) -> Float[Tensor, "b c t"]:
    """Chunks that begin every `stride` samples as one wave.

    Where several cover a sample, it is their mean, weighted by a triangle as wide as the first chunk, which no other
    may exceed.
    """
    width = chunks[0].shape[-1]
    ends = [i * stride + chunk.shape[-1] for i, chunk in enumerate(chunks)]
    place = torch.arange(1, width + 1, device=chunks[0].device)
    triangle = torch.minimum(place, width + 1 - place).float()
    total = chunks[0].new_zeros(*chunks[0].shape[:-1], max(ends), dtype=torch.float32)
    weight = total.new_zeros(max(ends))
    for end, chunk in zip(ends, chunks, strict=True):
        size = chunk.shape[-1]
        assert size <= width, f"a chunk of {size} samples after one of {width}"
        total[..., end - size : end] += triangle[:size] * chunk
        weight[end - size : end] += triangle[:size]
    return (total / weight).to(chunks[0].dtype)
