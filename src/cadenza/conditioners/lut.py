"""Lookup table of a text: as one hashed word, as hashed words, or as tokens of a pretrained tokenizer."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor, nn

from cadenza.conditioners.base import ConditionerSpec, EmptyText, ProjectionConditioner, pad_ids, present_text, warn_truncated
from cadenza.conditioners.base_encoders import encode_texts, load_tokenizer, save_source
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import ModelSource
from cadenza.core.spec import Spec
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.nn.tokenizers import SPACY_MODEL, find_spacy_model, hash_to_row, spacy_tokens, split_normalized_words

_CONFIG = "tokenizer_config.json"
_FILES = ("tokenizer.json", "spiece.model")  # other formats are converted by transformers


class WholeTextTokenizer(Spec):
    """Hash the whole text as one word, like `noop` of AudioCraft."""

    type: Literal["whole"] = "whole"
    bins: int = Field(default=1024, ge=1)  # rows of the table; words may collide

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the words of each text."""
        return [[text] for text in texts]


class HashedWordsTokenizer(Spec):
    """Hash runs of letters and digits; case, character width and marks are ignored."""

    type: Literal["words"] = "words"
    bins: int = Field(default=8192, ge=1)

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        return [split_normalized_words(text) for text in texts]


class SpacyTokenizer(Spec):
    """Hash the words of spaCy's `model`, like `whitespace` of AudioCraft."""

    type: Literal["spacy"] = "spacy"
    bins: int = Field(default=8192, ge=1)
    model: str = Field(default=SPACY_MODEL, min_length=1)  # an installed package, or a folder
    lemmas: bool = True  # dictionary forms
    stop_words: bool = False  # keep words such as "the"

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        return spacy_tokens(texts, model=self.model, lemmas=self.lemmas, stop_words=self.stop_words)


class PretrainedTokenizer(Spec):
    """Tokens of the tokenizer in `model`, a folder or a repository of the hub, with additional `special_tokens`."""

    type: Literal["vocab"] = "vocab"
    model: str = Field(min_length=1)
    revision: str | None = None  # commit, branch or tag of the repository
    special_tokens: tuple[str, ...] = ()
    size: int | None = Field(default=None, ge=1)  # vocabulary size; default: that of the tokenizer


Reader = Annotated[
    WholeTextTokenizer | HashedWordsTokenizer | SpacyTokenizer | PretrainedTokenizer, Field(discriminator="type")
]


class LutSpec(ConditionerSpec):
    """Table of vectors of width `dim` (default `output_dim`), projected to `output_dim`.

    With `project: auto` there is a projection only if the widths differ. Texts of more than `max_length` tokens are
    truncated with a warning. `positions` adds learned positions as in stable-audio-tools, to padding too.
    """

    type: Literal["lut"] = "lut"
    tokenizer: Reader = HashedWordsTokenizer()
    dim: int | None = Field(default=None, ge=1)
    project: Literal["always", "auto"] = "auto"
    std: float = Field(default=1.0, gt=0)  # of the table before training; 0.1 if vectors are added to embeddings
    empty_text: EmptyText = "null"
    max_length: int | None = Field(default=None, ge=1)
    pad_to: Literal["longest", "max_length"] = "longest"
    positions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _expand_tokenizer(cls, data: Any) -> Any:
        """Accept `tokenizer: words` for `tokenizer: {type: words}`."""
        if isinstance(data, dict) and isinstance(data.get("tokenizer"), str):
            return {**data, "tokenizer": {"type": data["tokenizer"]}}
        return data

    @model_validator(mode="after")
    def _check_max_length(self) -> Self:
        if self.max_length is None and (self.positions or self.pad_to == "max_length"):
            raise ValueError(f"{'positions' if self.positions else 'pad_to: max_length'} needs max_length, in tokens")
        if self.max_length is not None and isinstance(self.tokenizer, WholeTextTokenizer):
            raise ValueError("max_length: not supported by tokenizer: whole. Remove it")
        return self

    @property
    def output_kind(self) -> ConditionKind:  # type: ignore[override]
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


class LUTConditioner(ProjectionConditioner[list[int]]):
    """Look up one trained vector per word, with an optional linear layer; padding is zero except for positions.

    Raises RequestError if a value is not a text.
    """

    placeholder = []

    def __init__(self, spec: LutSpec) -> None:
        super().__init__(spec)
        dim, tokenizer = spec.dim or spec.output_dim, spec.tokenizer
        self.vocabulary = LazyTokenizer(tokenizer, spec.max_length) if isinstance(tokenizer, PretrainedTokenizer) else None
        self.table = nn.Embedding(self.vocabulary.size if self.vocabulary else tokenizer.bins, dim)  # type: ignore[union-attr]
        nn.init.normal_(self.table.weight, std=spec.std)
        self.add_projection(dim)
        self.places = nn.Embedding(spec.max_length or 1, spec.output_dim) if spec.positions else None

    def prepare_training(self, values: Any) -> None:
        """Load the tokenizer; raises CheckpointError if it is missing."""
        self._ids(["x"])

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        """Copy the tokenizer or the spaCy model if it is a local folder, and return the spec to save."""
        tokenizer, fields = self.spec.tokenizer, {}
        if self.vocabulary:
            fields = {"size": self.vocabulary.size}  # loads the tokenizer
            fields |= save_source(self.vocabulary.source, self.vocabulary.save, folder, subfolder)
        elif isinstance(tokenizer, SpacyTokenizer) and Path(tokenizer.model).expanduser().is_dir():
            shutil.copytree(find_spacy_model(tokenizer.model), folder / subfolder, copy_function=shutil.copyfile)
            fields = {"model": f"./{subfolder}"}
        return self.spec.model_copy(update={"tokenizer": tokenizer.model_copy(update=fields)})

    def parse_values(self, values: Sequence[Any]) -> list[list[int] | None]:
        """Return the table rows of each text's words; a text without words is absent."""
        texts = [present_text(value, self.spec.empty_text) for value in values]
        ids = iter(self._ids([text for text in texts if text is not None]))
        return [None if text is None else next(ids) or None for text in texts]

    def preprocess(self, values: Sequence[list[int]]) -> dict[str, Tensor]:
        length = self.spec.max_length if self.spec.pad_to == "max_length" else None
        return pad_ids(values, pad=self.vocabulary.pad if self.vocabulary else 0, length=length)

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        projected = super().project({"x": self.table(tensors["ids"]), "mask": tensors["mask"]})
        if self.places is None:
            return projected
        places = self.places.weight[: projected.x.shape[1]] * self.spec.output_dim**-0.5  # scaled as in stable-audio-tools
        return replace(projected, x=projected.x + places)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer, most = self.spec.tokenizer, self.spec.max_length
        if self.vocabulary:
            return encode_texts(self.vocabulary.tokenizer, texts)
        words = tokenizer.split(texts)
        for row in words:
            if most is not None and len(row) > most:
                warn_truncated(len(row), most)
        return [[hash_to_row(word, tokenizer.bins) for word in row[:most]] for row in words]


class LazyTokenizer:
    """Tokenizer of a spec, loaded on first use."""

    def __init__(self, spec: PretrainedTokenizer, max_length: int | None = None) -> None:
        self.spec, self.max_length = spec, max_length
        self.source = ModelSource(spec.model, spec.revision)

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.spec.size or _size(self.tokenizer)

    @property
    def pad(self) -> int:
        """Padding id; padding is masked."""
        has_config = self.source.folder and self.source.optional_file(_CONFIG)
        token = self.source.read_json(_CONFIG).get("pad_token") if has_config else None
        token = token.get("content") if isinstance(token, dict) else token
        return self.tokenizer.token_to_id(token or "<pad>") or 0

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer with the spec's special tokens, which truncates before the end token; or CheckpointError."""
        path = next((path for name in _FILES if (path := self.source.optional_file(name))), None)
        tokenizer = self._convert() if path is None else load_tokenizer(path)
        tokenizer.add_special_tokens(list(self.spec.special_tokens))
        if self.spec.size not in (None, _size(tokenizer)):
            raise CheckpointError(f"'{self.spec.model}' has {_size(tokenizer)} tokens, not {self.spec.size}; fix `size`")
        tokenizer.no_truncation()
        if self.max_length is not None:
            tokenizer.enable_truncation(self.max_length)
        return tokenizer

    def _convert(self) -> Tokenizer:
        """Return the tokenizer of another format, such as vocab.txt."""
        from transformers import AutoTokenizer

        try:
            options = {"revision": self.spec.revision, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(self.spec.model, **options).backend_tokenizer
        except Exception as error:  # transformers raises nothing narrower
            raise CheckpointError(f"'{self.spec.model}' has no tokenizer that can be read ({error}); copy it again") from None
        tokenizer.no_padding()
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write the tokenizer and its config to a new folder."""
        folder.mkdir(parents=True)
        self.tokenizer.save(str(folder / _FILES[0]))
        if config := self.source.optional_file(_CONFIG):
            (folder / _CONFIG).write_bytes(config.read_bytes())


def _size(tokenizer: Tokenizer) -> int:
    """Return the highest token id + 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
