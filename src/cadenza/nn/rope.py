"""Positions of tokens: sinusoidal embeddings, and rotations of queries and keys (RoPE)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.nn.kv_cache import PositionRange


class RotaryTable(NamedTuple):
    """Cosines and signed sines of each position, for `apply_rotary`."""

    cos: Float[Tensor, "b 1 n d"]
    sin: Float[Tensor, "b 1 n d"]

    def slice(self, span: PositionRange) -> "RotaryTable":
        return RotaryTable(span.gather(self.cos, 2), span.gather(self.sin, 2))


def sinusoidal_embedding(positions: Int[Tensor, "b n"], width: int, base: float = 10000.0) -> Float[Tensor, "b n d"]:
    """Return [cos | sin] at geometric frequencies from 1 to 1 / base, in float32; padded with 0 to an odd `width`."""
    half = width // 2
    phase = positions[..., None] * base ** -(torch.arange(half, device=positions.device) / max(half - 1, 1))
    return F.pad(torch.cat([phase.cos(), phase.sin()], -1), (0, width % 2))


def rotary_table(positions: Int[Tensor, "b n"], width: int, base: float = 10000.0) -> RotaryTable:
    """Return the rotary table (arXiv:2104.09864) for heads of `width`; dimension i is paired with i + width / 2."""
    frequency = base ** -(torch.arange(0, width, 2, device=positions.device) / width)
    phase = (positions[..., None] * frequency)[:, None]
    return RotaryTable(torch.cat([phase.cos()] * 2, -1), torch.cat([-phase.sin(), phase.sin()], -1))


def apply_rotary(x: Float[Tensor, "b h n d"], rotation: RotaryTable) -> Float[Tensor, "b h n d"]:
    """Rotate queries or keys by their positions, computed in float32, returned in their dtype."""
    return torch.addcmul(x * rotation.cos, x.roll(x.shape[-1] // 2, -1), rotation.sin).to(x.dtype)
