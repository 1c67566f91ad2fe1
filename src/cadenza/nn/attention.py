"""Attention to the positions before, and to the tokens of a condition."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import Tokens
from cadenza.nn.cache import KeyValues
from cadenza.nn.positions import Rotation, rotate


class Source(NamedTuple):
    """Keys and values of tokens to attend to, computed once; rows that are not `alive` contribute exactly nothing."""

    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]
    mask: Bool[Tensor, "b 1 1 n"] | None
    alive: Bool[Tensor, "b 1 1"] | None


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, causal when no mask is given; queries, keys, values in one matrix."""

    def __init__(self, dim: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotation: Rotation | None = None,
        mask: Bool[Tensor, "b 1 n m"] | None = None,
        memory: KeyValues | None = None,
        at: int = 0,
    ) -> Float[Tensor, "b n d"]:
        """With `memory`, the positions from `at` on are added to it; several of them after others need a mask."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if memory is not None:
            k, v = memory.write(k, v, at)
        causal = mask is None and q.shape[2] > 1
        y = attend(q, k, v, mask, causal=causal)
        return self.out(rearrange(y, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to the tokens of a condition, whose keys and values are computed once."""

    def __init__(self, dim: int, heads: int, *, source: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(source, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def read(self, tokens: Tokens, *, attend_padding: bool = False) -> Source:
        """Keys and values of the tokens; padding takes part only if asked."""
        x, mask, alive = tokens.x, None, None
        if not attend_padding:
            x = x.masked_fill(~tokens.mask[..., None], 0)
            alive = tokens.mask.any(1)[:, None, None]
            mask = (tokens.mask[:, None] | ~alive)[:, None]
        k, v = rearrange(self.kv(x), "b n (p h d) -> p b h n d", p=2, h=self.heads).unbind(0)
        return Source(k.contiguous(), v.contiguous(), mask, alive)

    def forward(self, x: Float[Tensor, "b n d"], source: Source) -> Float[Tensor, "b n d"]:
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        y = attend(q, source.keys, source.values, source.mask)
        y = self.out(rearrange(y, "b h n d -> b n (h d)"))
        return y if source.alive is None else torch.where(source.alive, y, torch.zeros((), dtype=y.dtype, device=y.device))


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    mask: Bool[Tensor, "b 1 i m"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b h n d"]:
    """Softmax attention; in half precision on a CPU, where torch's own is slow, by other ways to the same.

    One query is computed in float32, four times as fast; where gradients are wanted, matrix products are twice as fast.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        if q.shape[2] == 1:
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)
        if torch.is_grad_enabled():
            return _plain(q, k, v, mask, causal=causal)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Softmax attention with all scores at once."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.matmul(scores.softmax(-1), v)


def prefix_mask(valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b 1 n n"]:
    """Causal attention to valid positions; every position sees itself, so that no row is empty."""
    n = valid.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(n, dtype=torch.bool, device=valid.device)
    return (causal & (valid[:, None] | itself))[:, None]
