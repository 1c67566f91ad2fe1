"""Where in a sequence: places whose numbers the host knows, or one that lies on the device and may be another each time."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BUCKET = 256  # places; as many more are read at once where the host does not know how many there are


def round_up_to_bucket(places: int) -> int:
    """The next multiple of BUCKET."""
    return -(-places // BUCKET) * BUCKET


class PositionRange(NamedTuple):
    """The places from `at` up to `end`; where `at` lies on the device, that one place, which is somewhere below `end`.

    Work that is recorded and replayed (`nn.graphs`) takes no number from the host, so it finds its place on the device.
    """

    at: int | Int[Tensor, "1"]
    end: int

    def shifted(self, by: int) -> "PositionRange":
        return PositionRange(self.at + by, self.end + by)

    @property
    def on_device(self) -> bool:
        """Whether it lies on the device."""
        return not isinstance(self.at, int)

    def padded_to_bucket(self) -> "PositionRange":
        """The same place below the next multiple of BUCKET, where it lies on the device."""
        return PositionRange(self.at, round_up_to_bucket(self.end)) if self.on_device else self

    def gather(self, x: Shaped[Tensor, "..."], dim: int) -> Shaped[Tensor, "..."]:
        """What `x` holds there: a view, or a copy of the one place on the device."""
        return x.narrow(dim, self.at, self.end - self.at) if isinstance(self.at, int) else x.index_select(dim, self.at)

    def scatter_(self, x: Shaped[Tensor, "..."], dim: int, value: Shaped[Tensor, "..."]) -> None:
        """Puts `value` there."""
        if isinstance(self.at, int):
            x.narrow(dim, self.at, self.end - self.at).copy_(value)
        else:
            x.index_copy_(dim, self.at, value)


@dataclass
class LayerKVCache:
    """One layer's keys and values of all positions so far."""

    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]

    def update(
        self, keys: Float[Tensor, "b h n d"], values: Float[Tensor, "b h n d"], span: PositionRange
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """Everything below the end of the span, whose positions are new."""
        assert span.end <= self.keys.shape[2], f"position {span.end} does not fit a cache of {self.keys.shape[2]}"
        span.scatter_(self.keys, 2, keys)
        span.scatter_(self.values, 2, values)
        return self.keys[:, :, : span.end], self.values[:, :, : span.end]


@dataclass
class KVCache:
    """Keys and values of every layer."""

    layers: list[LayerKVCache]

    @classmethod
    def allocate(cls, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> "KVCache":
        """Buffers of `shape` (batch, heads, positions, head width) on the device and in the dtype of `like`."""
        make = lambda: torch.zeros(shape, dtype=like.dtype, device=like.device)  # noqa: E731
        return cls([LayerKVCache(make(), make()) for _ in range(layers)])
