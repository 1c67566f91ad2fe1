"""Where in a sequence: places whose numbers the host knows, or one that lies on the device and may be another each time."""

from typing import NamedTuple

from jaxtyping import Int, Shaped
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
