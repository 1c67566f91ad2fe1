"""A pre-norm transformer, run over a whole sequence or step by step with a KV cache."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import MaskedSequence
from cadenza.nn.attention import AttentionMask, CrossAttention, CrossKV, SelfAttention
from cadenza.nn.kv_cache import KVCache, PositionRange
from cadenza.nn.rope import RotaryTable


def dropout(x: Tensor, rate: float, rng: torch.Generator | None) -> Tensor:
    """Dropout with random numbers from `rng`; the identity without one."""
    if rng is None or rate == 0:
        return x
    mask = torch.empty_like(x).bernoulli_(1 - rate, generator=rng)
    return x * mask / (1 - rate)


class Block(nn.Module):
    """Self-attention, cross-attention if `source` (the width of its tokens) is given, GELU feed-forward; all pre-norm.

    With `style`, the width of a vector, adaptive norms (arXiv:2212.09748) scale and shift the inputs of self-attention
    and feed-forward; they start as the identity.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        hidden: int,
        source: int | None = None,
        style: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.adaln = None if style is None else nn.Linear(style, 4 * dim, bias=False)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attention = SelfAttention(dim, heads, bias=bias)
        self.norm_cross = None if source is None else nn.LayerNorm(dim, eps)
        self.cross = None if source is None else CrossAttention(dim, heads, source=source, bias=bias)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotation: RotaryTable | None = None,
        mask: Shaped[Tensor, "#b 1 n m"] | None = None,
        source: CrossKV | None = None,
        style: Float[Tensor, "b 1 e"] | None = None,
        memory: KVCache | None = None,
        span: PositionRange | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`style` is the output of `adaln`: two scales and two shifts of width d."""
        scale1, shift1, scale2, shift2 = (None,) * 4 if style is None else style.chunk(4, -1)
        y = _modulate(self.norm1(x), scale1, shift1)
        x = x + dropout(self.attention(y, rotation=rotation, mask=mask, memory=memory, span=span), self.dropout, rng)
        if self.cross is not None and self.norm_cross is not None and source is not None:
            x = x + dropout(self.cross(self.norm_cross(x), source), self.dropout, rng)
        y = _modulate(self.norm2(x), scale2, shift2)
        return x + dropout(self.down(F.gelu(self.up(y))), self.dropout, rng)


class Transformer(nn.Module):
    """`depth` blocks and a final norm; `block` are the other arguments of `Block`."""

    def __init__(self, dim: int, depth: int, *, heads: int, eps: float = 1e-5, **block: Any) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, eps=eps, **block) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps)
        self.apply(_init_linear)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # projections into the residual stream
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)
            if name.endswith("adaln.weight"):
                nn.init.zeros_(weight)

    def project_cross_kv(self, tokens: MaskedSequence, *, attend_padding: bool = False) -> list[CrossKV]:
        """Return the keys and values of the tokens for every block; a bias of the tokens is one per position."""
        reach = AttentionMask.from_tokens(tokens, attend_padding=attend_padding)
        return [block.cross.project_kv(tokens, attend_padding=attend_padding, reach=reach) for block in self.blocks]  # type: ignore[union-attr]

    def adaln_params(self, vector: Float[Tensor, "b g"]) -> list[Float[Tensor, "b 1 e"]]:
        """Return the scales and shifts of every block for a global vector."""
        return [block.adaln(vector)[:, None] for block in self.blocks]  # type: ignore[operator]

    def allocate_kv_cache(self, batch: int, positions: int) -> list[KVCache]:
        """Allocate a cache for `positions` positions of `batch` sequences in every block."""
        keys = [self.norm.weight.new_zeros(batch, self.heads, positions, self.head_dim) for _ in self.blocks]
        return [KVCache(x, torch.zeros_like(x)) for x in keys]

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotation: RotaryTable | None = None,
        mask: Shaped[Tensor, "#b 1 n m"] | None = None,
        source: list[CrossKV] | None = None,
        styles: list[Float[Tensor, "b 1 e"]] | None = None,
        cache: list[KVCache] | None = None,
        span: PositionRange | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Causal without a mask; with a cache, `x` are the positions `span`, and all positions before were run.

        `source` and `styles` are the results of `project_cross_kv` (for the positions of `x`) and `adaln_params`.
        """
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                rotation=rotation,
                mask=mask,
                source=None if source is None else source[i],
                style=None if styles is None else styles[i],
                memory=None if cache is None else cache[i],
                span=span,
                rng=rng,
            )
        return self.norm(x)


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else torch.addcmul(x + shift, x, scale)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
