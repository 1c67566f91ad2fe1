"""Words looked up in a table: a text as one word, as its words hashed, or as the tokens of a vocabulary."""

import shutil
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, ConditionerSpec, PreparedInputs
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.hub import ModelSource
from cadenza.core.spec import Spec
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.nn.tokenizers import (
    SPACY_MODEL,
    find_spacy_model,
    hash_to_row,
    load_sentencepiece,
    spacy_tokens,
    split_normalized_words,
)

_FILES = ("tokenizer.json", "spiece.model")  # which are read as they are; for others `transformers` knows rules
_KEPT = "tokenizer.json"


class WholeTextTokenizer(Spec):
    """A text is one word, hashed as it is: what AudioCraft calls `noop`."""

    type: Literal["whole"] = "whole"
    bins: int = Field(default=1024, ge=1)  # rows of the table; words may share one


class HashedWordsTokenizer(Spec):
    """Runs of letters and digits, hashed; case, width and marks do not count."""

    type: Literal["words"] = "words"
    bins: int = Field(default=8192, ge=1)


class SpacyTokenizer(Spec):
    """Words as spaCy's language model `model` finds them, hashed: what AudioCraft calls `whitespace`."""

    type: Literal["spacy"] = "spacy"
    bins: int = Field(default=8192, ge=1)
    model: str = Field(default=SPACY_MODEL, min_length=1)  # an installed package, or a folder
    lemmas: bool = True  # dictionary forms
    stop_words: bool = False  # whether "the" and its like are kept


class PretrainedTokenizer(Spec):
    """Tokens of the tokenizer in `model`, a folder or a repository of the hub, with `special_tokens` beside its own."""

    type: Literal["vocab"] = "vocab"
    model: str = Field(min_length=1)
    revision: str | None = None  # of the repository
    special_tokens: tuple[str, ...] = ()
    size: int | None = Field(default=None, ge=1)  # tokens in all; looked up in the tokenizer where not given


Reader = Annotated[
    WholeTextTokenizer | HashedWordsTokenizer | SpacyTokenizer | PretrainedTokenizer, Field(discriminator="type")
]


class LutSpec(ConditionerSpec):
    """A table of vectors of `dim`, by default `width`, projected to `width`.

    `project: auto` has no projection where `dim` is `width` already. Texts of more than `max_length` tokens are cut.
    With `positions` a learned vector a place is added, as stable-audio-tools does: its padding holds that vector alone.
    """

    type: Literal["lut"] = "lut"
    widget: ClassVar[str] = "text"
    tokenizer: Reader = HashedWordsTokenizer()
    dim: int | None = Field(default=None, ge=1)
    project: Literal["always", "auto"] = "auto"
    std: float = Field(default=1.0, gt=0)  # of the table before training: 1 suits attention, a tenth of it a sum
    empty_text: Literal["absent", "read"] = "absent"  # whether an empty text is no value, or one of no word
    max_length: int | None = Field(default=None, ge=1)
    pad_to: Literal["longest", "max_length"] = "longest"
    positions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, data: Any) -> Any:
        """`tokenizer: words` for one that needs nothing else said."""
        if isinstance(data, dict) and isinstance(data.get("tokenizer"), str):
            return {**data, "tokenizer": {"type": data["tokenizer"]}}
        return data

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.max_length is None and (self.positions or self.pad_to == "max_length"):
            raise ValueError(f"{'positions' if self.positions else 'pad_to: max_length'} needs max_length, in tokens")
        if self.max_length is not None and isinstance(self.tokenizer, WholeTextTokenizer):
            raise ValueError("max_length has no meaning where a text is one word (tokenizer: whole); leave it out")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "vector" if isinstance(self.tokenizer, WholeTextTokenizer) else "tokens"

    @classmethod
    def example(cls) -> tuple["LutSpec", list[Any]]:
        spec = cls(output_dim=8, tokenizer=HashedWordsTokenizer(bins=64), dim=6, max_length=12, positions=True)
        return spec, ["slow piano in A minor, 80 bpm", "drums", "F♯ major — 120 BPM, très vite"]

    def build(self) -> "LUTConditioner":
        return LUTConditioner(self)

    def resolve_paths(self, folder: Path) -> Self:
        tokenizer = self.tokenizer
        if isinstance(tokenizer, SpacyTokenizer | PretrainedTokenizer) and tokenizer.model.startswith("./"):
            tokenizer = tokenizer.model_copy(update={"model": str(folder / tokenizer.model)})
        return self.model_copy(update={"tokenizer": tokenizer})


class LUTConditioner(Conditioner[str]):
    """A table with a trained vector a word, and a linear layer; what pads is exactly zero but for its position."""

    placeholder = ""

    def __init__(self, spec: LutSpec) -> None:
        super().__init__(spec)
        self.vocabulary = (
            LazyTokenizer(spec.tokenizer, spec.max_length) if isinstance(spec.tokenizer, PretrainedTokenizer) else None
        )
        dim = spec.dim or spec.output_dim
        rows = self.vocabulary.size if self.vocabulary else spec.tokenizer.bins  # type: ignore[union-attr]
        self.table = nn.Embedding(rows, dim)
        nn.init.normal_(self.table.weight, std=spec.std)
        self.out = nn.Identity() if spec.project == "auto" and dim == spec.output_dim else nn.Linear(dim, spec.output_dim)
        self.places = nn.Embedding(spec.max_length or 1, spec.output_dim) if spec.positions else None

    def prepare_training(self, values: Any) -> None:
        """Reads what is needed, so that what is missing is said before the first step."""
        self._ids(["x"])

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        """A tokenizer of the hub is named by its commit, an installed language model by its name; folders are copied."""
        tokenizer = self.spec.tokenizer
        if self.vocabulary:
            tokenizer = self.vocabulary.save_assets(folder, subfolder)
        elif isinstance(tokenizer, SpacyTokenizer) and Path(tokenizer.model).expanduser().is_dir():
            shutil.copytree(find_spacy_model(tokenizer.model), folder / subfolder, copy_function=shutil.copyfile)
            tokenizer = tokenizer.model_copy(update={"model": f"./{subfolder}"})
        return self.spec.model_copy(update={"tokenizer": tokenizer})

    def prepare(self, values: Sequence[Any]) -> PreparedInputs:
        """A text in which no word is found says as little as none, so it counts as absent."""
        there = [value is not None and (self.spec.empty_text == "read" or bool(_text(value).strip())) for value in values]
        found = iter(self._ids([_text(value) for value, is_there in zip(values, there, strict=True) if is_there]))
        rows = [next(found) if is_there else [] for is_there in there]
        return PreparedInputs(self._padded(rows), torch.tensor([bool(row) for row in rows]))

    def preprocess(self, values: Sequence[str]) -> dict[str, Tensor]:
        return self._padded(self._ids([_text(value) for value in values]))

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        x = self.out(self.table(tensors["ids"])) * mask[..., None]
        if self.places is not None:  # as large as the vectors of a table divided by the root of their width
            x = x + self.places.weight[: x.shape[1]] * self.spec.output_dim**-0.5
        return MaskedSequence(x, mask)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The rows of each text's words in the table."""
        tokenizer, most = self.spec.tokenizer, self.spec.max_length
        if self.vocabulary:
            return self.vocabulary.encode_batch(texts)
        match tokenizer:
            case WholeTextTokenizer():
                words = [[text] for text in texts]
            case HashedWordsTokenizer():
                words = [split_normalized_words(text) for text in texts]
            case _:
                words = spacy_tokens(texts, model=tokenizer.model, lemmas=tokenizer.lemmas, stop_words=tokenizer.stop_words)
        for some in words:
            if most is not None and len(some) > most:
                _warn(len(some), most)
        return [[hash_to_row(word, tokenizer.bins) for word in some[:most]] for some in words]

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        """The `ids` of tokens and the `mask` of those that are real [b n]."""
        longest = max(1, *map(len, rows)) if rows else 1
        n = self.spec.max_length if self.spec.pad_to == "max_length" else longest
        ids = torch.full((len(rows), n), self.vocabulary.pad if self.vocabulary else 0)
        for row, line in zip(rows, ids, strict=True):
            line[: len(row)] = torch.tensor(row, dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        return {"ids": ids, "mask": torch.arange(n) < lengths[:, None]}


class LazyTokenizer:
    """The tokenizer of a spec, read when first needed; copies share it, other processes read their own."""

    def __init__(self, spec: PretrainedTokenizer, most: int | None = None) -> None:
        self.spec, self.most = spec, most
        self.source = ModelSource(spec.model, spec.revision)

    def __deepcopy__(self, memo: Any) -> "LazyTokenizer":
        return self

    def __reduce__(self) -> Any:
        return LazyTokenizer, (self.spec, self.most)

    @property
    def size(self) -> int:
        """How many rows a table for its tokens has."""
        return self.spec.size or _size(self.tokenizer)

    @property
    def pad(self) -> int:
        """The id that pads; what it is never counts."""
        said = self.source.optional_file("tokenizer_config.json") if self.source.folder else None
        name = self.source.read_json("tokenizer_config.json").get("pad_token") if said else None
        name = name.get("content") if isinstance(name, dict) else name
        return self.tokenizer.token_to_id(name or "<pad>") or 0

    @cached_property
    def base_tokenizer(self) -> Tokenizer:
        """The tokenizer as it was found."""
        path = next((path for name in _FILES if (path := self.source.optional_file(name))), None)
        try:
            if path is None:
                tokenizer = self._by_rules()
            else:
                tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else load_sentencepiece(path)
        except CheckpointError:
            raise
        except Exception as error:  # neither library raises anything narrower
            raise CheckpointError(f"'{self.spec.model}' has no tokenizer that can be read ({error}); copy it again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer with the special tokens of the spec, which cuts what is too long before the mark at its end."""
        tokenizer = Tokenizer.from_str(self.base_tokenizer.to_str())
        tokenizer.add_special_tokens(list(self.spec.special_tokens))
        if self.spec.size not in (None, _size(tokenizer)):
            raise CheckpointError(f"'{self.spec.model}' has {_size(tokenizer)} tokens, not {self.spec.size}; mend `size`")
        if self.most is not None:
            tokenizer.enable_truncation(self.most)
        return tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text's tokens, the marks around it included."""
        encodings = [self.tokenizer.encode(text) for text in texts]
        for encoding in encodings:
            if lost := sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoding.overflowing):
                _warn(len(encoding.ids) + lost, len(encoding.ids))
        return [encoding.ids for encoding in encodings]

    def save_assets(self, folder: Path, subfolder: str) -> PretrainedTokenizer:
        """What a saved system says of it, which is copied there where it came from a folder."""
        if self.source.folder is None:
            return self.spec.model_copy(update={"size": self.size, "revision": self.source.resolved_revision})
        (folder / subfolder).mkdir(parents=True)
        self.base_tokenizer.save(str(folder / subfolder / _KEPT))
        if config := self.source.optional_file("tokenizer_config.json"):
            (folder / subfolder / config.name).write_bytes(config.read_bytes())
        return self.spec.model_copy(update={"size": self.size, "model": f"./{subfolder}", "revision": None})

    def _by_rules(self) -> Tokenizer:
        """One that is in other files, such as vocab.txt, by the rules that `transformers` has for their model."""
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(self.spec.model, revision=self.spec.revision, trust_remote_code=False)
        return found.backend_tokenizer


def _size(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"a text is needed, got {value!r} ({type(value).__name__}); put it in quotes")
    return value


def _warn(found: int, most: int) -> None:
    warnings.warn(
        f"a text has {found} tokens, {most} are read (`max_length` of its conditioner): the last {found - most} are lost",
        stacklevel=3,
    )
