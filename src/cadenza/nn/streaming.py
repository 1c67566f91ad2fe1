"""Streaming decoders for a batch of clips of different lengths: by lookahead, or by chunks with overlap-add."""

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
    """A decoder whose concatenated outputs equal its output for each whole clip."""

    clips: list[int] | None = None  # clips that have not ended, by row; None before the first frames

    def push(self, z: Float[Tensor, "b d f"], lengths: Sequence[int]) -> dict[int, Float[Tensor, "c t"]]:
        """Decode new frames and return the new samples by clip; a clip with fewer frames than f ends here."""
        if self.clips is None:
            self.clips = list(range(len(z)))
        clips = self.clips
        rows = [row for row, clip in enumerate(clips) if lengths[clip] == z.shape[-1]]
        samples = {}
        for row, clip in enumerate(clips):
            if row not in rows:
                samples |= _by_clip([clip], self.select([row]).step(z[[clip], :, : lengths[clip]], last=True))
        if len(rows) < len(clips):
            vars(self).update(vars(self.select(rows)))
        return samples | (_by_clip(self.clips, self.step(z[self.clips], last=False)) if rows else {})

    def flush(self) -> dict[int, Float[Tensor, "c t"]]:
        """Return the last samples of each clip that has not ended."""
        return _by_clip(self.clips, self.step(None, last=True)) if self.clips else {}

    @abstractmethod
    def step(self, z: Float[Tensor, "r d f"] | None, *, last: bool) -> Float[Tensor, "r c t"] | None:
        """Return the samples of all rows that are final, or None; after the `last` frames all of them."""

    def select(self, rows: list[int]) -> Self:
        """Return a stream of some of the rows."""
        part = copy(self)
        part.clips = None if self.clips is None else [self.clips[row] for row in rows]
        return part


def _by_clip(clips: list[int], wave: Tensor | None) -> dict[int, Tensor]:
    return {} if wave is None else dict(zip(clips, wave, strict=True))


@dataclass(frozen=True)
class ChunkLayout:
    """Chunks of `length` samples that start every `stride` samples; the last ones are shorter."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"stride must be between 1 and the chunk length {self.length}, got {self.stride}")

    def spans(self, samples: int) -> list[tuple[int, int]]:
        """Return start and stop of every chunk of a clip, in samples."""
        return [(start, min(start + self.length, samples)) for start in range(0, samples, self.stride)]


class OverlapAdder:
    """Overlap-add of chunks that start every `stride` samples, weighted by a triangle as long as the first chunk.

    No other chunk may be longer than the first.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.triangle: Tensor | None = None
        self.total: Tensor | None = None  # weighted sum of the samples that a later chunk may change
        self.weight: Tensor | None = None

    def push(self, chunk: Float[Tensor, "b c _"]) -> Float[Tensor, "b c t"]:
        """Add a chunk and return the samples that no later chunk covers."""
        size = chunk.shape[-1]
        if self.triangle is None:
            ramp = torch.arange(1, size + 1, device=chunk.device)
            self.triangle = torch.minimum(ramp, size + 1 - ramp).float()
            self.total, self.weight = chunk.new_zeros(*chunk.shape[:-1], 0).float(), self.triangle[:0]
        assert self.total is not None and self.weight is not None
        assert size <= len(self.triangle), f"a chunk of {size} samples is longer than the first, {len(self.triangle)}"
        more = max(0, size - len(self.weight))
        total, weight = F.pad(self.total, (0, more)), F.pad(self.weight, (0, more))
        total[..., :size] += self.triangle[:size] * chunk
        weight[:size] += self.triangle[:size]
        self.total, self.weight = total[..., self.stride :].clone(), weight[self.stride :]
        return (total[..., : self.stride] / weight[: self.stride]).to(chunk.dtype)

    def flush(self) -> Float[Tensor, "b c t"]:
        """Return the remaining samples."""
        assert self.total is not None and self.weight is not None, "flush before the first push"
        return self.total / self.weight

    def select(self, rows: list[int]) -> "OverlapAdder":
        """Return the state of some clips of the batch."""
        part = copy(self)
        part.total = None if self.total is None else self.total[rows]
        return part


def overlap_add(chunks: Sequence[Float[Tensor, "b c _"]], stride: int) -> Float[Tensor, "b c t"]:
    """Return the overlap-add of chunks that start every `stride` samples."""
    overlap = OverlapAdder(stride)
    done = [overlap.push(chunk) for chunk in chunks]
    return torch.cat([*done, overlap.flush().to(chunks[0].dtype)], -1)


class ChunkedStream(BatchStream):
    """A stream of clips encoded in chunks: each chunk is decoded when its last frame has arrived."""

    gain: Float[Tensor, "b s"] | None = None  # loudness scale of each clip's s chunks, set by the caller

    def __init__(self, decoder: Callable[[Tensor], Tensor], *, frames: int, stride: int) -> None:
        self.decoder, self.frames = decoder, frames  # frames of a whole chunk
        self.overlap = OverlapAdder(stride)
        self.pending: Tensor | None = None
        self.decoded = 0  # chunks

    def step(self, z: Tensor | None, *, last: bool) -> Tensor | None:
        if z is not None:
            self.pending = z if self.pending is None else torch.cat([self.pending, z], -1)
        samples = []
        while self.pending is not None and self.pending.shape[-1] >= (1 if last else self.frames):
            samples.append(self.overlap.push(self._decode(self.pending[..., : self.frames])))
            self.pending = self.pending[..., self.frames :].clone()
        if last and self.decoded:
            samples.append(self.overlap.flush().to(self.dtype))
        return torch.cat(samples, -1) if samples else None

    def select(self, rows: list[int]) -> Self:
        part = super().select(rows)
        part.pending = None if self.pending is None else self.pending[rows]
        part.overlap = self.overlap.select(rows)
        return part

    def _decode(self, z: Tensor) -> Tensor:
        wave = self.decoder(z)
        if self.gain is not None:
            wave = wave * self.gain[self.clips, self.decoded, None, None]
        self.decoded, self.dtype = self.decoded + 1, wave.dtype
        return wave


def receptive_field(shape: SeanetConfig) -> tuple[int, int]:
    """Return the frames to either side that a frame depends on: in the layers before the LSTM, and in those after it."""

    def side(kernel: int, dilation: int = 1) -> int:
        width = (kernel - 1) * dilation
        return width if shape.style.causal else math.ceil(width / 2)

    after = side(shape.last_kernel)
    for level, stride in enumerate(reversed(shape.strides)):
        after += sum(side(shape.residual_kernel, shape.dilation_base**j) for j in range(shape.residual_layers[level]))
        after = math.ceil(after / stride) + 1
    return side(shape.kernel), after


@dataclass
class BufferedLayers:
    """Layers over a growing sequence that depend on `reach` frames to either side and output `rate` samples a frame."""

    layers: Sequence[nn.Module]
    reach: int
    rate: int
    buffer: Tensor | None = None  # frames that later outputs depend on
    first: int = 0  # index of the first of them
    done: int = 0  # frames whose samples were returned

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        """Return the samples that are final, or None; after the `last` frames all of them."""
        if x is not None:
            self.buffer = x if self.buffer is None else torch.cat([self.buffer, x], -1)
        if self.buffer is None:
            return None
        available = self.first + self.buffer.shape[-1]
        ready = available if last else available - self.reach
        if ready <= self.done:
            return None
        y = self.buffer
        for layer in self.layers:
            y = layer(y)
        y = y[..., (self.done - self.first) * self.rate : (ready - self.first) * self.rate]
        drop = max(0, ready - self.reach - self.first)
        self.buffer, self.first, self.done = self.buffer[..., drop:], self.first + drop, ready
        return y

    def select(self, rows: list[int]) -> "BufferedLayers":
        """Return the layers with the buffer of some clips of the batch."""
        return replace(self, buffer=None if self.buffer is None else self.buffer[rows])


class LookaheadStream(BatchStream):
    """A stream that decodes each frame as soon as the frames it depends on have arrived."""

    def __init__(self, decoder: Decoder, shape: SeanetConfig) -> None:
        layers, (before, after) = list(decoder.layers), receptive_field(shape)
        self.lstm = next((layer for layer in layers if isinstance(layer, ResidualLSTM)), None)
        split = 0 if self.lstm is None else layers.index(self.lstm)
        self.before = None if self.lstm is None else BufferedLayers(layers[:split], before, 1)
        rest, reach = (layers, before + after) if self.lstm is None else (layers[split + 1 :], after)
        self.after = BufferedLayers(rest, reach, math.prod(shape.strides))
        self.carried: StreamState = {}

    def step(self, z: Tensor | None, *, last: bool) -> Tensor | None:
        z = None if z is not None and z.shape[-1] == 0 else z
        if self.before is not None and self.lstm is not None:
            z = self.before.push(z, last=last)
            z = None if z is None else self.lstm(z, self.carried)
        return self.after.push(z, last=last)

    def select(self, rows: list[int]) -> Self:
        part = super().select(rows)
        part.before = None if self.before is None else self.before.select(rows)
        part.after = self.after.select(rows)
        part.carried = {layer: tuple(x[:, rows] for x in state) for layer, state in self.carried.items()}
        return part
