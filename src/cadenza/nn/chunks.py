"""A clip in overlapping chunks, each worked on alone, and their sum (Défossez et al. 2022, section 3.5)."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.nn.streams import BatchStream


@dataclass(frozen=True)
class ChunkLayout:
    """A chunk of `length` samples begins every `stride` samples while there are samples left; the last are shorter."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"chunks of {self.length} samples every {self.stride} leave gaps or overlap wholly")

    def spans(self, samples: int) -> list[tuple[int, int]]:
        """Start and stop of every chunk of a clip."""
        return [(start, min(start + self.length, samples)) for start in range(0, samples, self.stride)]


class OverlapAdder:
    """Chunks that begin every `stride` samples, added up one after the other.

    Where several cover a sample, it is their mean, weighted by a triangle as wide as the first chunk, which no other
    may exceed.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.triangle: Tensor | None = None
        self.total: Tensor | None = None  # weighted sum of the samples that are not finished
        self.weight: Tensor | None = None

    def push(self, chunk: Float[Tensor, "b c _"]) -> Float[Tensor, "b c t"]:
        """The samples that no later chunk covers."""
        size = chunk.shape[-1]
        if self.triangle is None:
            place = torch.arange(1, size + 1, device=chunk.device)
            self.triangle = torch.minimum(place, size + 1 - place).float()
            self.total = chunk.new_zeros(*chunk.shape[:-1], 0, dtype=torch.float32)
            self.weight = self.total.new_zeros(0)
        assert self.total is not None and self.weight is not None
        assert size <= len(self.triangle), f"a chunk of {size} samples after one of {len(self.triangle)}"
        more = max(0, size - len(self.weight))
        total, weight = F.pad(self.total, (0, more)), F.pad(self.weight, (0, more))
        total[..., :size] += self.triangle[:size] * chunk
        weight[:size] += self.triangle[:size]
        self.total, self.weight = total[..., self.stride :].clone(), weight[self.stride :]
        return (total[..., : self.stride] / weight[: self.stride]).to(chunk.dtype)

    def flush(self) -> Float[Tensor, "b c t"]:
        """The samples after all chunks."""
        assert self.total is not None and self.weight is not None, "there was no chunk"
        return self.total / self.weight

    def select(self, rows: list[int]) -> "OverlapAdder":
        """The same for some clips of the batch."""
        part = copy(self)
        part.total = None if self.total is None else self.total[rows]
        return part


def overlap_add(chunks: Sequence[Float[Tensor, "b c _"]], stride: int) -> Float[Tensor, "b c t"]:
    """Chunks that begin every `stride` samples as one wave, as `Overlap` adds them up."""
    overlap = OverlapAdder(stride)
    done = [overlap.push(chunk) for chunk in chunks]
    return torch.cat([*done, overlap.flush().to(chunks[0].dtype)], -1)


class ChunkedStream(BatchStream):
    """Clips whose frames are those of whole chunks one after another; each is decoded when its last frame has come."""

    gain: Float[Tensor, "b s"] | None = None  # of each clip's chunks; the caller sets it where there is one

    def __init__(self, decoder: Callable[[Tensor], Tensor], *, frames: int, stride: int) -> None:
        self.decoder, self.frames = decoder, frames  # of a whole chunk
        self.overlap = OverlapAdder(stride)
        self.waiting: Tensor | None = None
        self.number = 0  # of chunks decoded

    def step(self, z: Tensor | None, *, last: bool) -> Tensor | None:
        if z is not None:
            self.waiting = z if self.waiting is None else torch.cat([self.waiting, z], -1)
        done = []
        while self.waiting is not None and self.waiting.shape[-1] >= (1 if last else self.frames):
            done.append(self.overlap.push(self._decoded(self.waiting[..., : self.frames])))
            self.waiting = self.waiting[..., self.frames :].clone()
        if last and self.number:
            done.append(self.overlap.flush().to(self.dtype))
        return torch.cat(done, -1) if done else None

    def select(self, rows: list[int]) -> "ChunkedStream":
        part = copy(self)
        part.clips = None if self.clips is None else [self.clips[row] for row in rows]
        part.waiting = None if self.waiting is None else self.waiting[rows]
        part.overlap = self.overlap.select(rows)
        return part

    def _decoded(self, z: Tensor) -> Tensor:
        wave = self.decoder(z)
        if self.gain is not None:
            wave = wave * self.gain[self.clips, self.number, None, None]
        self.number, self.dtype = self.number + 1, wave.dtype
        return wave
