"""A SEANet decoder that looks ahead, fed piece by piece: its reach is bounded but for the LSTM, which runs forward only."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cadenza.nn.conv import ResidualLSTM, StreamState
from cadenza.nn.seanet import Decoder, SeanetConfig
from cadenza.nn.streams import BatchStream


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
