"""Where a token stands: sinusoids added to it, or rotations of its queries and keys."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.nn.kv_cache import PositionRange


class RotaryTable(NamedTuple):
    """Cosines and signed sines of each position, ready for `rotate`."""

    cos: Float[Tensor, "b 1 n d"]
    sin: Float[Tensor, "b 1 n d"]

    def slice(self, span: PositionRange) -> "RotaryTable":
        return RotaryTable(span.gather(self.cos, 2), span.gather(self.sin, 2))


def sinusoidal_embedding(positions: Int[Tensor, "b n"], width: int, base: float = 10000.0) -> Float[Tensor, "b n d"]:
    """[cos | sin] of positions over geometric frequencies from 1 down to 1 / base, in float32; then 0 where `width` is odd."""
    half = width // 2
    phase = positions[..., None] * base ** -(torch.arange(half, device=positions.device) / max(half - 1, 1))
    return F.pad(torch.cat([phase.cos(), phase.sin()], -1), (0, width % 2))


def rotary_table(positions: Int[Tensor, "b n"], width: int, base: float = 10000.0) -> RotaryTable:
    """The rotary embedding (arXiv:2104.09864) of heads of `width`; dimension i turns with i + width / 2."""
    speed = base ** -(torch.arange(0, width, 2, device=positions.device) / width)
    phase = (positions[..., None] * speed)[:, None]
    return RotaryTable(torch.cat([phase.cos()] * 2, -1), torch.cat([-phase.sin(), phase.sin()], -1))


def apply_rotary(x: Float[Tensor, "b h n d"], rotation: RotaryTable) -> Float[Tensor, "b h n d"]:
    """Queries or keys turned by their positions, in float32, given back in their own dtype."""
    return torch.addcmul(x * rotation.cos, x.roll(x.shape[-1] // 2, -1), rotation.sin).to(x.dtype)
