"""One of a list of words, as one vector: a key, a genre, an instrument."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, ConditionerSpec
from cadenza.core.errors import RequestError
from cadenza.core.spec import near
from cadenza.core.types import Gives, Tokens


class CategorySpec(ConditionerSpec):
    """The known `values`, and `aliases` for other ways to write them; case, spaces and hyphens do not count.

    `std` is that of the vectors before training: 1 suits attention, a tenth of it a sum with a generator's embeddings.
    """

    type: Literal["category"] = "category"
    widget: ClassVar[str] = "choice"
    values: tuple[str, ...] = Field(min_length=1)
    aliases: dict[str, str] = Field(default={})
    std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        seen: dict[str, str] = {}
        for word in (*self.values, *self.aliases):
            if plain(word) in seen:
                raise ValueError(f"'{word}' and '{seen[plain(word)]}' are the same word; keep one of them")
            seen[plain(word)] = word
        for alias, value in self.aliases.items():
            if value not in self.values:
                raise ValueError(f"aliases.{alias} is '{value}', which is no value.{near(value, list(self.values))}")
        return self

    @property
    def gives(self) -> Gives:
        return "vector"

    @classmethod
    def example(cls) -> tuple["CategorySpec", list[Any]]:
        spec = cls(width=8, values=("A minor", "A# minor", "C major"), aliases={"Bb minor": "A# minor"})
        return spec, ["C major", "bb  Minor", "A minor"]

    def build(self) -> "Category":
        return Category(self)


class Category(Conditioner[str]):
    """A table with one trained vector a value."""

    def __init__(self, spec: CategorySpec) -> None:
        super().__init__(spec)
        self.blank = spec.values[0]
        self.rows = {plain(value): row for row, value in enumerate(spec.values)}
        self.rows |= {plain(alias): self.rows[plain(value)] for alias, value in spec.aliases.items()}
        self.table = nn.Embedding(len(spec.values), spec.width)
        nn.init.normal_(self.table.weight, std=spec.std)

    def read(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return {"row": torch.tensor([self._row(value) for value in values], dtype=torch.long)}

    def embed(self, tensors: dict[str, Tensor]) -> Tokens:
        row = tensors["row"][:, None]
        return Tokens(self.table(row), torch.ones_like(row, dtype=torch.bool))

    def _row(self, value: Any) -> int:
        row = self.rows.get(plain(value)) if isinstance(value, str) else None
        if row is None:
            raise RequestError(f"no value called {value!r}.{near(str(value), [*self.spec.values, *self.spec.aliases])}")
        return row


def plain(word: str) -> str:
    """A word without what does not count: case, spaces, hyphens inside, how its characters are composed."""
    return re.sub(r"(?<=\w)-(?=\w)", "", "".join(unicodedata.normalize("NFKC", word).casefold().split()))
