"""The encoder of T5 (arXiv:1910.10683), with the gated feed-forward of T5 v1.1 (arXiv:2002.05202), mT5 and UMT5.

Modules have the names of transformers, so that released weights load without renaming.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.errors import CheckpointError

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder."""

    vocabulary: int
    width: int
    hidden: int  # width of the feed-forward
    depth: int
    heads: int
    head: int  # width of one head
    activation: str = "relu"
    gated: bool = False
    buckets: int = 32  # of relative positions
    max_distance: int = 128  # distances from here on share a bucket
    eps: float = 1e-6
    bias_per_layer: bool = False  # each layer has its own relative-position bias; otherwise the first one's is shared

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "T5Config":
        """Read the config of a T5, mT5 or UMT5 model, with the defaults of transformers; CheckpointError if unsupported."""
        defaults = (32128, 2048, 6, 8, "relu") if config["model_type"] == "t5" else (250112, 1024, 8, 6, "gated-gelu")
        vocabulary, hidden, depth, heads, forward = defaults
        forward = config.get("feed_forward_proj", forward)
        activation = "gelu_new" if forward == "gated-gelu" else forward.removeprefix("gated-")
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise CheckpointError(f"feed_forward_proj: {forward!r} is not supported. Expected one of {known}, or gated-...")
        return cls(
            config.get("vocab_size", vocabulary),
            config.get("d_model", 512),
            config.get("d_ff", hidden),
            config.get("num_layers", depth),
            config.get("num_heads", heads),
            config.get("d_kv", 64),
            activation,
            forward.startswith("gated-"),
            config.get("relative_attention_num_buckets", 32),
            config.get("relative_attention_max_distance", 128),
            config.get("layer_norm_epsilon", 1e-6),
            config["model_type"] == "umt5",
        )


class T5Encoder(nn.Module):
    """Token ids to hidden states, without dropout."""

    def __init__(self, sizes: T5Config) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.block = nn.ModuleList(T5Block(sizes, has_relative_bias=i == 0 or sizes.bias_per_layer) for i in range(sizes.depth))
        self.final_layer_norm = RMSNorm(sizes.width, sizes.eps)

    def forward(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Tokens outside the mask are not attended to; the first token always is, so that no row is empty."""
        index = torch.arange(ids.shape[1], device=ids.device)
        visible = (mask | (index == 0))[:, None, None]
        buckets = relative_position_bucket(index - index[:, None], self.sizes.buckets, self.sizes.max_distance)
        x = self.embed_tokens(ids).to(self.final_layer_norm.weight.dtype)
        bias: Tensor | None = None
        for block in self.block:
            table = block.layer[0].SelfAttention.relative_attention_bias  # type: ignore[index, union-attr]
            if table is not None:
                bias = table(buckets).permute(2, 0, 1).masked_fill(~visible, -torch.inf)
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5Block(nn.Module):
    """Residual pre-norm attention and feed-forward; two dictionaries of modules, as the names of the weights need."""

    def __init__(self, sizes: T5Config, *, has_relative_bias: bool) -> None:
        super().__init__()
        self.layer: Any = nn.ModuleList([
            nn.ModuleDict({
                "SelfAttention": T5Attention(sizes, has_relative_bias=has_relative_bias),
                "layer_norm": RMSNorm(sizes.width, sizes.eps),
            }),
            nn.ModuleDict({"DenseReluDense": T5FeedForward(sizes), "layer_norm": RMSNorm(sizes.width, sizes.eps)}),
        ])  # fmt: skip

    def forward(self, x: Float[Tensor, "b n d"], bias: Float[Tensor, "b h n n"]) -> Float[Tensor, "b n d"]:
        attention, feed_forward = self.layer
        x = x + attention.SelfAttention(attention.layer_norm(x), bias)
        return x + feed_forward.DenseReluDense(feed_forward.layer_norm(x))


class T5Attention(nn.Module):
    """T5 attention: no 1/sqrt(d) scaling; `has_relative_bias` adds the table of relative-position biases."""

    def __init__(self, sizes: T5Config, *, has_relative_bias: bool) -> None:
        super().__init__()
        self.heads = sizes.heads
        for name in "qkv":
            setattr(self, name, nn.Linear(sizes.width, sizes.heads * sizes.head, bias=False))
        self.o = nn.Linear(sizes.heads * sizes.head, sizes.width, bias=False)
        self.relative_attention_bias = nn.Embedding(sizes.buckets, sizes.heads) if has_relative_bias else None

    def forward(self, x: Float[Tensor, "b n d"], bias: Float[Tensor, "b h n n"]) -> Float[Tensor, "b n d"]:
        q, k, v = (getattr(self, name)(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.o(y.transpose(1, 2).flatten(2))


class T5FeedForward(nn.Module):
    """Feed-forward with one hidden layer, gated by a second projection of the input (arXiv:2002.05202) if `sizes.gated`."""

    def __init__(self, sizes: T5Config) -> None:
        super().__init__()
        self.projections = ("wi_0", "wi_1") if sizes.gated else ("wi",)
        for name in self.projections:
            setattr(self, name, nn.Linear(sizes.width, sizes.hidden, bias=False))
        self.wo = nn.Linear(sizes.hidden, sizes.width, bias=False)
        self.activation = _ACTIVATIONS[sizes.activation]

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        hidden, *gates = (getattr(self, name)(x) for name in self.projections)
        hidden = self.activation(hidden)
        return self.wo(hidden * gates[0] if gates else hidden)


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv:1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(self.weight.dtype) * self.weight


def relative_position_bucket(offset: Int[Tensor, "n m"], count: int, max_distance: int) -> Int[Tensor, "n m"]:
    """Return the bucket of each offset from query to key: half of them per direction, linear then logarithmic."""
    half = count // 2
    near = half // 2
    distance = offset.abs()
    growth = torch.log(distance.clamp(min=1).float() / near) / math.log(max_distance / near)
    far = (near + (growth * (half - near)).long()).clamp(max=half - 1)
    return torch.where(distance < near, distance, far) + half * (offset > 0)
