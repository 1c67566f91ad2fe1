"""Residual vector quantisation with EMA codebooks (arXiv:1711.00937, arXiv:2107.03312), fixed or variable in depth."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class QuantizerOutput:
    """Quantised latents with a straight-through gradient, their codes and the commitment loss."""

    latents: Float[Tensor, "b d f"]
    codes: Int[Tensor, "b k f"]
    commitment: Float[Tensor, ""]


class Codebook(nn.Module):
    """`bins` vectors, each the exponential moving average of the inputs nearest to it.

    `usage` is the moving share of inputs assigned to an entry, `total` the moving mean of their sum.
    """

    embed: Tensor
    usage: Tensor
    total: Tensor

    def __init__(self, bins: int, dim: int, *, decay: float = 0.99, dead: float = 0.1) -> None:
        super().__init__()
        self.decay, self.dead = decay, dead  # entries used less than this share of the mean use are replaced
        self.register_buffer("embed", torch.randn(bins, dim) / dim**0.5)
        self.register_buffer("usage", torch.full((bins,), 1.0 / bins))
        self.register_buffer("total", self.embed / bins)

    @property
    def codebook_size(self) -> int:
        return self.embed.shape[0]

    def nearest(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Return the entry with the smallest squared distance to each vector."""
        embed = self.embed.to(x.dtype)
        return (embed.square().sum(-1) - 2.0 * x @ embed.T).argmin(-1)

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        return F.embedding(ids, self.embed)

    @torch.no_grad()
    def ema_update(self, x: Float[Tensor, "n d"], ids: Int[Tensor, " n"], rng: torch.Generator) -> None:
        """Update the averages by a batch of all processes, and replace dead entries by random vectors of it."""
        counts = torch.bincount(ids, minlength=self.codebook_size).to(x.dtype)
        sums = torch.zeros_like(self.total).index_add_(0, ids, x)
        picks = torch.randint(2**62, (self.codebook_size,), generator=rng).to(x.device)
        total_count, candidates = _gather_batch(x, picks, counts, sums)
        self.usage.lerp_(counts / total_count, 1.0 - self.decay)
        self.total.lerp_(sums / total_count, 1.0 - self.decay)
        dead = self.usage < self.dead / self.codebook_size
        self.usage.masked_fill_(dead, 1.0 / self.codebook_size)
        self.total.copy_(torch.where(dead[:, None], candidates / self.codebook_size, self.total))
        total, eps = self.usage.sum(), 1e-7
        smoothed = (self.usage + eps) / (total + eps * self.codebook_size) * total  # Laplace: no division by zero
        self.embed.copy_(self.total / smoothed[:, None])

    @torch.no_grad()
    def kmeans_init(self, x: Float[Tensor, "n d"], rng: torch.Generator, *, rounds: int = 30) -> None:
        """Initialise by k-means from random vectors of `x`; an entry without members restarts at a random vector."""
        picks = torch.randperm(len(x), generator=rng).to(x.device)[torch.arange(self.codebook_size, device=x.device) % len(x)]
        self.embed.copy_(x[picks])
        for _ in range(rounds):
            ids = self.nearest(x)
            counts = torch.bincount(ids, minlength=self.codebook_size).to(x.dtype)
            means = torch.zeros_like(self.embed).index_add_(0, ids, x) / counts.clamp(min=1.0)[:, None]
            restarts = x[torch.randint(len(x), (self.codebook_size,), generator=rng).to(x.device)]
            self.embed.copy_(torch.where(counts[:, None] > 0, means, restarts))
        self.usage.fill_(1.0 / self.codebook_size)
        self.total.copy_(self.embed / self.codebook_size)
        if _world_size() > 1:
            for buffer in (self.embed, self.usage, self.total):
                distributed.broadcast(buffer, 0)


class ResidualVectorQuantizer(nn.Module):
    """Each codebook quantises the residual of the codebooks before it."""

    def __init__(self, dim: int, *, codebooks: int, bins: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Codebook(bins, dim) for _ in range(codebooks))

    @property
    def codebooks(self) -> list[Codebook]:
        return cast(list[Codebook], list(self.levels))

    @property
    def dtype(self) -> torch.dtype:
        return self.codebooks[0].embed.dtype

    def forward(
        self, z: Float[Tensor, "b d f"], *, num_codebooks: int | None = None, rng: torch.Generator | None = None
    ) -> QuantizerOutput:
        """Quantise with the first `num_codebooks` (default all) for training; with `rng` update them from `z`."""
        with torch.autocast(z.device.type, enabled=False):
            flat = rearrange(z.float(), "b d f -> (b f) d")
            residual, losses, codes = flat, [], []
            for book in self.codebooks[:num_codebooks]:
                ids = book.nearest(residual.detach())
                chosen = book(ids)
                if rng is not None:
                    book.ema_update(residual.detach(), ids, rng)
                losses.append(F.mse_loss(residual, chosen))
                residual = residual - chosen
                codes.append(ids)
            quantized = flat + (flat - residual - flat).detach()
        latents = rearrange(quantized, "(b f) d -> b d f", b=len(z))
        ids = rearrange(torch.stack(codes), "k (b f) -> b k f", b=len(z))
        return QuantizerOutput(latents, ids, torch.stack(losses).mean())

    def encode(self, z: Float[Tensor, "b d f"], *, num_codebooks: int | None = None) -> Int[Tensor, "b k f"]:
        """Return the codes of the first `num_codebooks` codebooks (default all)."""
        residual = rearrange(z.float(), "b d f -> (b f) d")
        codes = []
        for book in self.codebooks[:num_codebooks]:
            ids = book.nearest(residual)
            residual = residual - book(ids)
            codes.append(ids)
        return rearrange(torch.stack(codes), "k (b f) -> b k f", b=len(z))

    def decode(self, codes: Int[Tensor, "b k f"]) -> Float[Tensor, "b d f"]:
        """Return the sum of the entries; `codes` may have fewer codebooks than the quantizer."""
        chosen = [book(ids) for book, ids in zip(self.codebooks, codes.unbind(1), strict=False)]
        return rearrange(torch.stack(chosen).sum(0), "b f d -> b d f")

    @torch.no_grad()
    def kmeans_init(self, latents: Float[Tensor, "n d"], rng: torch.Generator) -> None:
        """Initialise each codebook by k-means of the residual of those before it."""
        residual = latents.float()
        for book in self.codebooks:
            book.kmeans_init(residual, rng)
            residual = residual - book(book.nearest(residual))


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _gather_batch(x: Tensor, picks: Tensor, counts: Tensor, sums: Tensor) -> tuple[int, Tensor]:
    """Return the vectors of all processes, counted, and those numbered `picks`; sum `counts` and `sums` in place."""
    if _world_size() == 1:
        return len(x), x[picks % len(x)]
    sizes = [torch.zeros((), dtype=torch.long, device=x.device) for _ in range(_world_size())]
    distributed.all_gather(sizes, torch.tensor(len(x), device=x.device))
    distributed.broadcast(picks, 0)
    before = sum(int(size) for size in sizes[: distributed.get_rank()])
    total_count = sum(int(size) for size in sizes)
    index = picks % total_count - before
    owned = (index >= 0) & (index < len(x))
    candidates = x[index.clamp(0, len(x) - 1)] * owned[:, None]
    for part in (counts, sums, candidates):
        distributed.all_reduce(part)
    return total_count, candidates


class MaskedBatchNorm(nn.Module):
    """Batch normalisation without affine parameters over the vectors that are not padding."""

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
    """Normalised vectors quantised by a number of codebooks per item, with a straight-through gradient."""

    def __init__(self, dim: int, *, codebooks: int, bins: int) -> None:
        super().__init__()
        self.norm = MaskedBatchNorm(dim)
        self.quantizer = ResidualVectorQuantizer(dim, codebooks=codebooks, bins=bins)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"],
        num_codebooks: Int[Tensor, " b"],
        *,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Quantise item i by `num_codebooks[i]` codebooks; with `rng`, training updates them from valid vectors."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            flat = self.norm(x.float(), mask)
            residual, total = flat.detach(), torch.zeros_like(flat)
            for k, book in enumerate(self.quantizer.codebooks):
                active = (mask & (k < num_codebooks)[:, None])[..., None]
                ids = book.nearest(residual.flatten(0, 1)).view(mask.shape)
                if self.training and rng is not None and bool(active.any()):
                    book.ema_update(residual[active[..., 0]], ids[active[..., 0]], rng)
                chosen = torch.where(active, book(ids), 0)
                total, residual = total + chosen, residual - chosen
            return flat + (total - flat).detach()
