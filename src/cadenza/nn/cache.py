"""The memory of incremental decoding: buffers made once, written and read where the caller says."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.nn.span import PositionRange


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
