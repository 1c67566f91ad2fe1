"""A batch of clips through a network piece by piece, each clip ending where its own frames end."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.nn.conv import ResidualLSTM, StreamState
from cadenza.nn.seanet import Decoder, SeanetConfig


class BatchStream(ABC):
    """What comes out, put together, is the network's answer to each whole clip."""

    clips: list[int] | None = None  # those that have not ended, in the order of the rows; None before the first piece

    def push(self, z: Float[Tensor, "b d f"], lengths: Sequence[int]) -> dict[int, Float[Tensor, "c t"]]:
        """The new samples of each clip that has some; a clip with fewer frames than the others ends here."""
        if self.clips is None:
            self.clips = list(range(len(z)))
        clips = self.clips
        rows = [row for row, clip in enumerate(clips) if lengths[clip] == z.shape[-1]]
        given = {}
        for row, clip in enumerate(clips):
            if row not in rows:
                given |= _by_clip([clip], self.select([row]).step(z[[clip], :, : lengths[clip]], last=True))
        if len(rows) < len(clips):
            vars(self).update(vars(self.select(rows)))
        return given | (_by_clip(self.clips, self.step(z[self.clips], last=False)) if rows else {})

    def flush(self) -> dict[int, Float[Tensor, "c t"]]:
        """The last samples of each clip that had not ended."""
        return _by_clip(self.clips, self.step(None, last=True)) if self.clips else {}

    @abstractmethod
    def step(self, z: Float[Tensor, "r d f"] | None, *, last: bool) -> Float[Tensor, "r c t"] | None:
        """The samples of all rows that are now determined, if any; after the `last` frames all of them."""

    @abstractmethod
    def select(self, rows: list[int]) -> Self:
        """The same for some of the rows, with `clips` of their own."""


def _by_clip(clips: list[int], wave: Tensor | None) -> dict[int, Tensor]:
    return {} if wave is None else dict(zip(clips, wave, strict=True))


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


@dataclass(frozen=True)
class ReceptiveField:
    """Frames that layers see on either side of one: those before the LSTM, and those after it, up to the wave."""

    before: int
    after: int

    @classmethod
    def of(cls, shape: SeanetConfig) -> "ReceptiveField":
        def side(kernel: int, dilation: int = 1) -> int:
            seen = (kernel - 1) * dilation
            return seen if shape.style.causal else math.ceil(seen / 2)

        reach = side(shape.last_kernel)
        for level, stride in enumerate(reversed(shape.strides)):
            reach += sum(side(shape.residual_kernel, shape.dilation_base**j) for j in range(shape.residual_layers[level]))
            reach = math.ceil(reach / stride) + 1
        return cls(side(shape.kernel), reach)


@dataclass
class BufferedLayers:
    """Layers that see `reach` frames to either side and give `rate` samples a frame, over a sequence that grows."""

    layers: Sequence[nn.Module]
    reach: int
    rate: int
    kept: Tensor | None = None  # the frames that are still seen
    first: int = 0  # the place of the first of them
    done: int = 0  # frames whose samples were given

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        """The samples that are now determined, if any; after the `last` frames all of them."""
        if x is not None:
            self.kept = x if self.kept is None else torch.cat([self.kept, x], -1)
        if self.kept is None:
            return None
        known = self.first + self.kept.shape[-1]
        ready = known if last else known - self.reach
        if ready <= self.done:
            return None
        y = self.kept
        for layer in self.layers:
            y = layer(y)
        y = y[..., (self.done - self.first) * self.rate : (ready - self.first) * self.rate]
        drop = max(0, ready - self.reach - self.first)
        self.kept, self.first, self.done = self.kept[..., drop:], self.first + drop, ready
        return y

    def select(self, rows: list[int]) -> "BufferedLayers":
        """The same for some clips of the batch."""
        return replace(self, kept=None if self.kept is None else self.kept[rows])


class LookaheadStream(BatchStream):
    """Each frame as soon as those are known that its samples depend on."""

    def __init__(self, decoder: Decoder, shape: SeanetConfig) -> None:
        layers, reach, hop = list(decoder.layers), ReceptiveField.of(shape), math.prod(shape.strides)
        place = next((i for i, layer in enumerate(layers) if isinstance(layer, ResidualLSTM)), None)
        self.memory = None if place is None else layers[place]
        self.before = None if place is None else BufferedLayers(layers[:place], reach.before, 1)
        rest = layers if place is None else layers[place + 1 :]
        self.after = BufferedLayers(rest, reach.after + (reach.before if place is None else 0), hop)
        self.carried: StreamState = {}

    def step(self, z: Tensor | None, *, last: bool) -> Tensor | None:
        z = None if z is not None and z.shape[-1] == 0 else z
        if self.before is not None and self.memory is not None:
            z = self.before.push(z, last=last)
            z = None if z is None else self.memory(z, self.carried)
        return self.after.push(z, last=last)

    def select(self, rows: list[int]) -> "LookaheadStream":
        part = copy(self)
        part.clips = None if self.clips is None else [self.clips[row] for row in rows]
        part.before = None if self.before is None else self.before.select(rows)
        part.after = self.after.select(rows)
        part.carried = {layer: tuple(x[:, rows] for x in state) for layer, state in self.carried.items()}
        return part
