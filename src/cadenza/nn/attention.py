"""Attention to the positions before, and to the tokens of a condition."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import MaskedSequence
from cadenza.nn.kv_cache import LayerKVCache, PositionRange
from cadenza.nn.rope import RotaryTable, apply_rotary

ALIGNED = 16  # numbers from row to row of a bias

MANY = 2**20  # numbers of keys that are widened item by item


class AttentionMask(NamedTuple):
    """Which tokens each position attends to, or with what bias; where nothing is `alive`, nothing is contributed."""

    mask: Shaped[Tensor, "b 1 i n"] | None = None  # True where attended to, or the bias of the logits; i: positions, or 1
    any_valid: Bool[Tensor, "b i 1"] | None = None

    @classmethod
    def from_tokens(cls, tokens: MaskedSequence, *, attend_padding: bool = False) -> "AttentionMask":
        """That of every position, or of each where the tokens have a bias; padding takes part only if asked."""
        if tokens.bias is None:
            if attend_padding:
                return cls()
            alive = tokens.mask.any(1)[:, None, None]
            return cls((tokens.mask[:, None] | ~alive)[:, None], alive)
        bias = tokens.bias.mT
        if not attend_padding:
            bias = bias.masked_fill(~tokens.mask[:, None], -torch.inf)
        alive = (bias > -torch.inf).any(-1, keepdim=True)
        return cls(bias.masked_fill(~alive, 0)[:, None], alive)

    def slice(self, span: PositionRange) -> "AttentionMask":
        """That of some positions."""
        if self.mask is None or self.any_valid is None or self.mask.shape[2] == 1:
            return self
        return AttentionMask(span.gather(self.mask, 2), span.gather(self.any_valid, 1))

    def as_bias(self, dtype: torch.dtype) -> "AttentionMask":
        """The same as a bias, which many layers share; else each makes one of the mask."""
        return AttentionMask(None if self.mask is None else _bias(self.mask, dtype), self.any_valid)


class CrossKV(NamedTuple):
    """Keys and values of tokens to attend to, computed once."""

    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]
    reach: AttentionMask


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
        rotation: RotaryTable | None = None,
        mask: Shaped[Tensor, "#b 1 n m"] | None = None,
        memory: LayerKVCache | None = None,
        span: PositionRange | None = None,
    ) -> Float[Tensor, "b n d"]:
        """With `memory`, the positions of `span` are written to it; several of them after others need a mask."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            q, k = apply_rotary(q, rotation), apply_rotary(k, rotation)
        if memory is not None:
            assert span is not None, "a memory needs to know which positions are written"
            k, v = memory.update(k, v, span)
        causal = mask is None and q.shape[2] > 1
        y = attention(q, k, v, mask, causal=causal)
        return self.out(rearrange(y, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to the tokens of a condition, whose keys and values are computed once."""

    def __init__(self, dim: int, heads: int, *, source: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(source, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def project_kv(
        self, tokens: MaskedSequence, *, attend_padding: bool = False, reach: AttentionMask | None = None
    ) -> CrossKV:
        """Keys and values of the tokens; padding takes part only if asked. `reach` is given where it is known."""
        x = tokens.x if attend_padding else tokens.x.masked_fill(~tokens.mask[..., None], 0)
        k, v = rearrange(self.kv(x), "b n (p h d) -> p b h n d", p=2, h=self.heads).unbind(0)
        return CrossKV(
            k.contiguous(), v.contiguous(), reach or AttentionMask.from_tokens(tokens, attend_padding=attend_padding)
        )

    def forward(self, x: Float[Tensor, "b n d"], source: CrossKV) -> Float[Tensor, "b n d"]:
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        mask, alive = source.reach
        y = attention(q, source.keys, source.values, mask)
        y = self.out(rearrange(y, "b h n d -> b n (h d)"))
        return y if alive is None else y * alive


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    mask: Shaped[Tensor, "#b 1 i m"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b h n d"]:
    """Softmax attention; `mask` is True where attended to, or a bias of the logits.

    In half precision on a CPU, where torch's own is slow, it goes other ways to the same: one query is computed in
    float32, four times as fast, and item by item where memory would be taken and given back at every step; where
    gradients are wanted, matrix products are twice as fast.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        if q.shape[2] == 1:
            items = 1 if k.numel() < MANY else len(k)
            masks = [mask] * items if mask is None or len(mask) < items else mask.chunk(items)
            each = zip(q.chunk(items), k.chunk(items), v.chunk(items), masks, strict=True)
            return torch.cat([_widened(*one) for one in each])
        if torch.is_grad_enabled():
            return _plain(q, k, v, mask, causal=causal)
    return F.scaled_dot_product_attention(q, k, v, _as(mask, q.dtype), is_causal=causal)


def _widened(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), _as(mask, torch.float32)).to(q.dtype)


def _as(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bias in the dtype of the queries; masks of truth values as they are."""
    return mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Softmax attention with all scores at once."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    return torch.matmul(scores.softmax(-1), v)


def prefix_causal_mask(valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b 1 n n"]:
    """Causal attention to valid positions; every position sees itself, so that no row is empty."""
    n = valid.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(n, dtype=torch.bool, device=valid.device)
    return (causal & (valid[:, None] | itself))[:, None]


def decode_step_mask(
    valid: Bool[Tensor, "b n"] | None, span: PositionRange, dtype: torch.dtype
) -> Shaped[Tensor, "#b 1 1 m"] | None:
    """What one position sees: the valid ones up to itself, all of them where None.

    A bias of `dtype` where the position lies on the device, as what ends before the span does is then seen by a mask alone.
    """
    if isinstance(span.at, int):
        return None if valid is None else valid[:, None, None, : span.end]
    seen = (torch.arange(span.end, device=span.at.device) <= span.at)[None]
    if valid is not None:
        seen = seen & F.pad(valid, (0, span.end - valid.shape[1]), value=True)
    return _bias(seen[:, None, None], dtype)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attended to and -inf elsewhere, a bias as it is; in rows that CUDA's kernels take without a copy of their own."""
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask.to(dtype)
    return F.pad(bias, (0, -bias.shape[-1] % ALIGNED))[..., : bias.shape[-1]]
