"""Text through a small bidirectional transformer that is trained and saved with the model."""

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.conditioners.base import Conditioner, ConditionerSpec, pad_ids, present_text
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.nn.rope import RotaryTable, rotary_table
from cadenza.nn.tokenizers import BYTES, BPETokenizer, train_bpe

# single digits and symbols are words; runs of letters are cut at 32 to bound the time of BPE
_WORD = re.compile(r"\d|[^\W\d_]{1,32}|[^\w\s]|_")
_SIGNS = str.maketrans({"♯": "#", "♭": "b"})


class TextSpec(ConditionerSpec):
    """Texts of at most `max_tokens` tokens of a BPE vocabulary learned from the training texts."""

    type: Literal["text"] = "text"
    output_kind: ClassVar[ConditionKind] = "tokens"
    vocabulary: int = Field(default=2048, ge=BYTES)
    max_tokens: int = Field(default=128, ge=1)
    dim: int = Field(default=256, ge=2)
    depth: int = Field(default=4, ge=0)
    heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim ({self.dim}) must be an even multiple of heads ({self.heads})")
        return self

    @classmethod
    def example(cls) -> tuple["TextSpec", list[Any]]:
        spec = cls(output_dim=8, vocabulary=300, max_tokens=48, dim=16, depth=2, heads=2)
        return spec, ["slow piano in A minor, 80 bpm", "drums", "F# major — 120 BPM, très vite"]

    def build(self) -> "TextConditioner":
        return TextConditioner(self)


class TextConditioner(Conditioner[str]):
    """Encode byte-level BPE tokens by transformer blocks with rotary positions; padding is masked.

    A text longer than `max_tokens` is truncated with a warning; a blank one is absent. Raises RequestError for other values.
    """

    placeholder = ""
    merges: Tensor

    def __init__(self, spec: TextSpec) -> None:
        super().__init__(spec)
        self.register_buffer("merges", torch.full((spec.vocabulary - BYTES, 2), -1, dtype=torch.int32))
        self.embedding = nn.Embedding(spec.vocabulary, spec.dim)
        self.blocks = nn.ModuleList(_EncoderBlock(spec.dim, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim)
        self.out = nn.Linear(spec.dim, spec.output_dim)
        self.tokenizer = BPETokenizer()  # of `merges`, on the CPU for data workers
        self.register_load_state_dict_post_hook(_load_merges)

    def prepare_training(self, values: Iterable[Any]) -> None:
        """Learn the vocabulary; the order of the texts does not matter."""
        counts = Counter(word for value in values for word in split_words(present_text(value) or ""))
        merges = train_bpe(counts, self.spec.vocabulary - BYTES)
        self.merges.fill_(-1)
        if merges:
            self.merges[: len(merges)] = torch.tensor(merges, dtype=torch.int32)
        self.tokenizer = BPETokenizer(merges)

    def parse_values(self, values: Sequence[Any]) -> list[str | None]:
        """Return the texts; a blank text is absent."""
        return [present_text(value) for value in values]

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return pad_ids([self._ids(value) for value in values])

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        x, mask = self.embedding(tensors["ids"]), tensors["mask"]
        positions = torch.arange(x.shape[1], device=x.device)[None]
        rotation = rotary_table(positions, self.spec.dim // self.spec.heads)
        for block in self.blocks:
            x = block(x, rotation, mask)
        return MaskedSequence(self.out(self.norm(x)) * mask[..., None], mask)

    def _ids(self, text: str) -> list[int]:
        most, ids = self.spec.max_tokens, []
        for word in split_words(text):
            ids += self.tokenizer.encode_word(word)
            if len(ids) > most:
                message = f"a text is longer than {most} tokens (`max_tokens` of its conditioner): the rest is not used"
                warnings.warn(message, stacklevel=2)
                break
        return ids[:most] or [0]  # one token for a blank text, so that attention is defined


class _EncoderBlock(nn.Module):
    """Pre-norm self-attention with rotary positions (arXiv:2104.09864) and a GELU feed-forward of four times the width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], rotation: RotaryTable, mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        cos, sin = (table.to(q.dtype) for table in rotation)
        q, k = (y * cos + y.roll(y.shape[-1] // 2, -1) * sin for y in (q, k))  # apply_rotary rounds differently
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(rearrange(attended, "b h n d -> b n (h d)"))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def split_words(text: str) -> Iterator[str]:
    """Yield digits, symbols and runs of letters in lower case: "80BPM" is 8, 0, bpm."""
    plain = unicodedata.normalize("NFKC", text).lower().translate(_SIGNS)
    return (match.group() for match in _WORD.finditer(plain))


def _load_merges(module: nn.Module, _: Any) -> None:
    assert isinstance(module, TextConditioner)
    if not module.merges.is_meta:
        module.tokenizer = BPETokenizer([(a, b) for a, b in module.merges.tolist() if a >= 0])
