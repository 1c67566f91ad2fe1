"""A word from a list as one vector: a key, a genre, an instrument."""

import re
import unicodedata
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cadenza.conditioners.base import ConditionerSpec, EmbeddingTableConditioner
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import ConditionKind


class CategorySpec(ConditionerSpec):
    """Known `values` and their `aliases`; case, spaces and hyphens are ignored unless `exact`.

    An unknown word is an error, or with `unknown: learned` uses one trained vector shared by all unknown words.
    """

    type: Literal["category"] = "category"
    widget: ClassVar[str] = "choice"
    output_kind: ClassVar[ConditionKind] = "vector"
    values: tuple[str, ...] = Field(min_length=1)
    aliases: dict[str, str] = Field(default={})
    exact: bool = False
    unknown: Literal["error", "learned"] = "error"
    std: float = Field(default=1.0, gt=0)  # of the vectors before training; 0.1 if they are added to embeddings

    @model_validator(mode="after")
    def _check_aliases(self) -> Self:
        seen: dict[str, str] = {}
        for word in (*self.values, *self.aliases):
            key = self.normalize_value(word)
            if key in seen:
                raise ValueError(f"'{word}' and '{seen[key]}' are the same word; keep one of them")
            seen[key] = word
        for alias, value in self.aliases.items():
            if value not in self.values:
                hint = did_you_mean(value, list(self.values))
                raise ValueError(f"aliases.{alias} is '{value}', which is not in `values`.{hint}")
        return self

    @classmethod
    def example(cls) -> tuple["CategorySpec", list[Any]]:
        spec = cls(output_dim=8, values=("A minor", "A# minor", "C major"), aliases={"Bb minor": "A# minor"})
        return spec, ["C major", "bb  Minor", "A minor"]

    def normalize_value(self, word: str) -> str:
        """Return the form in which words are compared."""
        if self.exact:
            return word
        plain = "".join(unicodedata.normalize("NFKC", word).casefold().split())
        return re.sub(r"(?<=\w)-(?=\w)", "", plain)

    def build(self) -> "CategoryConditioner":
        return CategoryConditioner(self)


class CategoryConditioner(EmbeddingTableConditioner[str]):
    """Look up one trained vector per value; row 0 is that of unknown words with `unknown: learned`."""

    def __init__(self, spec: CategorySpec) -> None:
        first = int(spec.unknown == "learned")
        super().__init__(spec, len(spec.values) + first)
        self.placeholder = spec.values[0]
        row_of_value = {value: row for row, value in enumerate(spec.values, first)}
        row_of_word = row_of_value | {alias: row_of_value[value] for alias, value in spec.aliases.items()}
        self.rows = {spec.normalize_value(word): row for word, row in row_of_word.items()}

    def row(self, value: Any) -> int:
        unknown = 0 if self.spec.unknown == "learned" else None
        row = self.rows.get(self.spec.normalize_value(value), unknown) if isinstance(value, str) else None
        if row is None:
            raise RequestError(f"no value called {value!r}.{did_you_mean(str(value), [*self.spec.values, *self.spec.aliases])}")
        return row
