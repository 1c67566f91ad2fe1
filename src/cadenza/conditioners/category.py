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
    """The known `values`, and `aliases` for other ways to write them; unless `exact`, case, spaces and hyphens do not count.

    A word that is not known is an error, or with `unknown: learned` has a vector that all such words share.

    `std` is that of the vectors before training: 1 suits attention, a tenth of it a sum with a generator's embeddings.
    """

    type: Literal["category"] = "category"
    widget: ClassVar[str] = "choice"
    values: tuple[str, ...] = Field(min_length=1)
    aliases: dict[str, str] = Field(default={})
    exact: bool = False
    unknown: Literal["error", "learned"] = "error"
    std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        seen: dict[str, str] = {}
        for word in (*self.values, *self.aliases):
            key = self.key(word)
            if key in seen:
                raise ValueError(f"'{word}' and '{seen[key]}' are the same word; keep one of them")
            seen[key] = word
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

    def key(self, word: str) -> str:
        """What of a word counts."""
        return word if self.exact else plain(word)

    def build(self) -> "Category":
        return Category(self)


class Category(Conditioner[str]):
    """A table with one trained vector a value, after that of unknown words where there is one."""

    def __init__(self, spec: CategorySpec) -> None:
        super().__init__(spec)
        self.blank = spec.values[0]
        first = int(spec.unknown == "learned")
        self.rows = {spec.key(value): row for row, value in enumerate(spec.values, first)}
        self.rows |= {spec.key(alias): self.rows[spec.key(value)] for alias, value in spec.aliases.items()}
        self.table = nn.Embedding(len(spec.values) + first, spec.width)
        nn.init.normal_(self.table.weight, std=spec.std)

    def read(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return {"row": torch.tensor([self._row(value) for value in values], dtype=torch.long)}

    def embed(self, tensors: dict[str, Tensor]) -> Tokens:
        row = tensors["row"][:, None]
        return Tokens(self.table(row), torch.ones_like(row, dtype=torch.bool))

    def _row(self, value: Any) -> int:
        row = self.rows.get(self.spec.key(value)) if isinstance(value, str) else None
        if row is None and isinstance(value, str) and self.spec.unknown == "learned":
            return 0
        if row is None:
            raise RequestError(f"no value called {value!r}.{near(str(value), [*self.spec.values, *self.spec.aliases])}")
        return row


def plain(word: str) -> str:
    """A word without what does not count: case, spaces, hyphens inside, how its characters are composed."""
    return re.sub(r"(?<=\w)-(?=\w)", "", "".join(unicodedata.normalize("NFKC", word).casefold().split()))
