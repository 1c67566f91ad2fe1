"""A bottleneck of adjustable strength: normalised vectors, quantised by as many codebooks as are asked for."""

from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cadenza.nn.quantize import ResidualVectorQuantizer


class MaskedBatchNorm(nn.Module):
    """Vectors over the mean and deviation of each of their numbers: in training those of the real vectors of a batch."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        mean, var = self.running_mean, self.running_var
        if self.training:
            weight = mask[..., None] / mask.sum().clamp(min=1)
            mean = (x * weight).sum((0, 1))
            var = ((x - mean).square() * weight).sum((0, 1))
            count = mask.sum()
            with torch.no_grad():
                share = torch.where(count > 1, self.momentum, 0.0)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), share)
        return (x - mean) * (var + self.eps).rsqrt()


class VariableRVQ(nn.Module):
    """What is left of vectors in a sum of entries of `levels` codebooks; the gradient goes straight through."""

    def __init__(self, dim: int, *, levels: int, bins: int) -> None:
        super().__init__()
        self.norm = MaskedBatchNorm(dim)
        self.quantizer = ResidualVectorQuantizer(dim, codebooks=levels, bins=bins)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"],
        levels: Int[Tensor, " b"],
        *,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Each item by its own number of codebooks; in training these learn of the real vectors where `rng` is given."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            flat = self.norm(x.float(), mask)
            residual, total = flat.detach(), torch.zeros_like(flat)
            for level, book in enumerate(self.quantizer.codebooks):
                here = (mask & (level < levels)[:, None])[..., None]
                ids = book.nearest(residual.flatten(0, 1)).view(mask.shape)
                if self.training and rng is not None and bool(here.any()):
                    book.ema_update(residual[here[..., 0]], ids[here[..., 0]], rng)
                chosen = torch.where(here, book(ids), 0)
                total, residual = total + chosen, residual - chosen
            return flat + (total - flat).detach()
