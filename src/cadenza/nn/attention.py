"""Self-attention with a KV cache, cross-attention to the tokens of a condition, and their masks."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import MaskedSequence
from cadenza.nn.kv_cache import KVCache, PositionRange
from cadenza.nn.rope import RotaryTable, apply_rotary

BIAS_ALIGNMENT = 16  # row stride of a bias, as CUDA's attention kernels need it
MAX_WIDENED = 2**20  # numbers of keys above which the batch is converted to float32 item by item


class AttentionMask(NamedTuple):
    """Mask or bias of the tokens for each position; where `any_valid` is False the output is 0."""

    mask: Shaped[Tensor, "b 1 i n"] | None = None  # True: attend; or a bias of the logits. i: positions, or 1 for all
    any_valid: Bool[Tensor, "b i 1"] | None = None

    @classmethod
    def from_tokens(cls, tokens: MaskedSequence, *, attend_padding: bool = False) -> "AttentionMask":
        """Return the mask of all positions, or of each if the tokens have a bias."""
        if tokens.bias is None:
            if attend_padding:
                return cls()
            any_valid = tokens.mask.any(1)[:, None, None]
            return cls((tokens.mask[:, None] | ~any_valid)[:, None], any_valid)
        bias = tokens.bias.mT
        if not attend_padding:
            bias = bias.masked_fill(~tokens.mask[:, None], -torch.inf)
        any_valid = (bias > -torch.inf).any(-1, keepdim=True)
        return cls(bias.masked_fill(~any_valid, 0)[:, None], any_valid)

    def slice(self, span: PositionRange) -> "AttentionMask":
        """Return the mask of some positions."""
        if self.mask is None or self.any_valid is None or self.mask.shape[2] == 1:
            return self
        return AttentionMask(span.gather(self.mask, 2), span.gather(self.any_valid, 1))

    def as_bias(self, dtype: torch.dtype) -> "AttentionMask":
        """Convert a boolean mask to a bias once, for all layers."""
        return AttentionMask(None if self.mask is None else _mask_to_bias(self.mask, dtype), self.any_valid)


class CrossKV(NamedTuple):
    """Projected keys and values of a condition's n tokens."""

    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]
    reach: AttentionMask


class SelfAttention(nn.Module):
    """Multi-head self-attention, causal without a mask; one projection for queries, keys and values."""

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
        memory: KVCache | None = None,
        span: PositionRange | None = None,
    ) -> Float[Tensor, "b n d"]:
        """With `memory`, x are the positions `span`; more than one position after others needs a mask."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            q, k = apply_rotary(q, rotation), apply_rotary(k, rotation)
        if memory is not None:
            assert span is not None, "memory needs a span"
            k, v = memory.update(k, v, span)
        y = attention(q, k, v, mask, causal=mask is None and q.shape[2] > 1)
        return self.out(rearrange(y, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to the tokens of a condition."""

    def __init__(self, dim: int, heads: int, *, source: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(source, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def project_kv(
        self, tokens: MaskedSequence, *, attend_padding: bool = False, reach: AttentionMask | None = None
    ) -> CrossKV:
        """Project the tokens to keys and values; `reach` is their mask if already computed."""
        x = tokens.x if attend_padding else tokens.x.masked_fill(~tokens.mask[..., None], 0)
        k, v = rearrange(self.kv(x), "b n (p h d) -> p b h n d", p=2, h=self.heads).unbind(0)
        reach = reach or AttentionMask.from_tokens(tokens, attend_padding=attend_padding)
        return CrossKV(k.contiguous(), v.contiguous(), reach)

    def forward(self, x: Float[Tensor, "b n d"], source: CrossKV) -> Float[Tensor, "b n d"]:
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        mask, any_valid = source.reach
        y = attention(q, source.keys, source.values, mask)
        y = self.out(rearrange(y, "b h n d -> b n (h d)"))
        return y if any_valid is None else y * any_valid


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    mask: Shaped[Tensor, "#b 1 i m"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b h n d"]:
    """Softmax attention; `mask` is True where attended to, or a bias of the logits.

    On a CPU, torch's half-precision kernel is slow. One query is therefore computed in float32 (four times as fast;
    large batches item by item, to reuse memory), and with gradients by plain matrix products (twice as fast).
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        if q.shape[2] == 1:
            items = 1 if k.numel() < MAX_WIDENED else len(k)
            masks = [mask] * items if mask is None or len(mask) < items else mask.chunk(items)
            parts = zip(q.chunk(items), k.chunk(items), v.chunk(items), masks, strict=True)
            return torch.cat([attention(q.float(), k.float(), v.float(), mask).to(q.dtype) for q, k, v, mask in parts])
        if torch.is_grad_enabled():
            return _matmul_attention(q, k, v, mask, causal=causal)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Softmax attention that stores all scores."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    return torch.matmul(scores.softmax(-1), v)


def prefix_causal_mask(valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b 1 n n"]:
    """Return a causal mask of the valid positions; every position attends to diagonal, so that no row is empty."""
    n = valid.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=valid.device).tril()
    diagonal = torch.eye(n, dtype=torch.bool, device=valid.device)
    return (causal & (valid[:, None] | diagonal))[:, None]


def decode_step_mask(
    valid: Bool[Tensor, "b n"] | None, span: PositionRange, dtype: torch.dtype
) -> Shaped[Tensor, "#b 1 1 m"] | None:
    """Return the mask of one position: valid positions up to itself, or all of them if `valid` is None.

    For a position on the device it is a bias of `dtype` over all positions below the end of `span`.
    """
    if isinstance(span.at, int):
        return None if valid is None else valid[:, None, None, : span.end]
    mask = (torch.arange(span.end, device=span.at.device) <= span.at)[None]
    if valid is not None:
        mask = mask & F.pad(valid, (0, span.end - valid.shape[1]), value=True)
    return _mask_to_bias(mask[:, None, None], dtype)


def _mask_to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where attended to and -inf elsewhere, or the bias itself, with aligned rows."""
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask.to(dtype)
    return F.pad(bias, (0, -bias.shape[-1] % BIAS_ALIGNMENT))[..., : bias.shape[-1]]
