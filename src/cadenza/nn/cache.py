"""The memory of incremental decoding: buffers made once, sliced by positions that the host knows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class KeyValues:
    """One layer's keys and values of all positions so far."""

    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]

    def write(
        self, keys: Float[Tensor, "b h n d"], values: Float[Tensor, "b h n d"], at: int
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """Everything up to and with the new positions."""
        end = at + keys.shape[2]
        assert end <= self.keys.shape[2], f"position {end} does not fit a cache of {self.keys.shape[2]}"
        self.keys[:, :, at:end] = keys
        self.values[:, :, at:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class Cache:
    """Keys and values of every layer; `length` positions are written, in the order in which they were fed."""

    layers: list[KeyValues]
    length: int = 0

    @classmethod
    def empty(cls, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> "Cache":
        """Buffers of `shape` (batch, heads, positions, head width) on the device and in the dtype of `like`."""
        make = lambda: torch.zeros(shape, dtype=like.dtype, device=like.device)  # noqa: E731
        return cls([KeyValues(make(), make()) for _ in range(layers)])
