"""Keys and values of the positions so far, and the ranges of positions that index them."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int, Shaped
from torch import Tensor

BUCKET = 256  # positions; lengths are rounded up to a multiple of it where a CUDA graph is replayed


def round_up_to_bucket(positions: int) -> int:
    """Return the next multiple of BUCKET."""
    return -(-positions // BUCKET) * BUCKET


class PositionRange(NamedTuple):
    """Positions from `at` up to `end`; an `at` on the device is one position, and `end` an upper bound of it.

    A captured CUDA graph cannot take numbers from the host, so it reads its position from the device.
    """

    at: int | Int[Tensor, "1"]
    end: int

    def shifted(self, by: int) -> "PositionRange":
        return PositionRange(self.at + by, self.end + by)

    @property
    def on_device(self) -> bool:
        return not isinstance(self.at, int)

    def padded_to_bucket(self) -> "PositionRange":
        """Round `end` up to the next multiple of BUCKET for a position on the device."""
        return PositionRange(self.at, round_up_to_bucket(self.end)) if self.on_device else self

    def gather(self, x: Shaped[Tensor, "..."], dim: int) -> Shaped[Tensor, "..."]:
        """Return the values of `x` at these positions: a view, or for a position on the device a copy."""
        return x.narrow(dim, self.at, self.end - self.at) if isinstance(self.at, int) else x.index_select(dim, self.at)

    def scatter_(self, x: Shaped[Tensor, "..."], dim: int, value: Shaped[Tensor, "..."]) -> None:
        """Write `value` to `x` at these positions."""
        if isinstance(self.at, int):
            x.narrow(dim, self.at, self.end - self.at).copy_(value)
        else:
            x.index_copy_(dim, self.at, value)


@dataclass
class KVCache:
    """Keys and values of one layer, for n positions."""

    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]

    def update(
        self, keys: Float[Tensor, "b h n d"], values: Float[Tensor, "b h n d"], span: PositionRange
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """Write the new positions `span` and return all keys and values below its end."""
        assert span.end <= self.keys.shape[2], f"position {span.end} does not fit a cache of {self.keys.shape[2]}"
        span.scatter_(self.keys, 2, keys)
        span.scatter_(self.values, 2, values)
        return self.keys[:, :, : span.end], self.values[:, :, : span.end]
