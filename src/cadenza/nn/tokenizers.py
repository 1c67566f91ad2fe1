"""Tokenizers of text: byte pair encoding, SentencePiece files, and words, normalised or by spaCy."""

import hashlib
import importlib
import importlib.util
import json
import re
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from cadenza.core.errors import CheckpointError

BYTES = 256
_CHARACTERS = [chr(0x100 + byte) for byte in range(BYTES)]  # the library merges characters, so each byte becomes one


class BPETokenizer:
    """Byte pair encoding (arXiv:1508.07909) of words; id 256 + i is the join of the two ids `merges[i]`."""

    def __init__(self, merges: Sequence[tuple[int, int]] = ()) -> None:
        self.merges = list(merges)

    def encode_word(self, word: str) -> list[int]:
        """Return the ids of a word without spaces."""
        return self._tokenizer.encode(_byte_characters(word)).ids

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        pieces = list(_CHARACTERS)
        for left, right in self.merges:
            pieces.append(pieces[left] + pieces[right])
        pairs = [(pieces[left], pieces[right]) for left, right in self.merges]
        return Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs))


def train_bpe(counts: Mapping[str, int], size: int) -> list[tuple[int, int]]:
    """Return at most `size` merges, the most frequent pair first, among equals the one with the lowest ids.

    Pairs that occur once are not merged.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + size, min_frequency=2, initial_alphabet=_CHARACTERS, special_tokens=[], show_progress=False
    )  # type: ignore[call-arg]
    tokenizer.train_from_iterator((f"{_byte_characters(word)} " * count for word, count in counts.items()), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def _byte_characters(word: str) -> str:
    return "".join(_CHARACTERS[byte] for byte in word.encode("utf-8", "replace"))


_UNIGRAM, _UNKNOWN, _CONTROL = 1, 2, 3  # type of a model, types of a piece
_TEXT, _SCORE, _KIND = 1, 2, 3  # field numbers of a piece
_WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


def load_sentencepiece(path: Path) -> Tokenizer:
    """Load a SentencePiece `.model` file, without begin and end tokens; raise ValueError unless it is a unigram model."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(value)) for field, value in fields if field == 1]
        trainer = dict(_fields(b"".join(value for field, value in fields if field == 2)))
        rules = dict(_fields(b"".join(value for field, value in fields if field == 3)))
        vocabulary = [(piece[_TEXT].decode(), struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0]) for piece in pieces]
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path} is not a SentencePiece model ({error!r})") from None
    if not vocabulary or trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise ValueError(f"{path} is not a unigram model of SentencePiece")
    kinds = [piece.get(_KIND, 1) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=kinds.index(_UNKNOWN) if _UNKNOWN in kinds else None))
    if charsmap := rules.get(2):
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = _WORDS
    special = [text for (text, _), kind in zip(vocabulary, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protocol buffer message; values are integers or bytes."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        kind = tag & 7
        if kind == 0:
            value, offset = _varint(data, offset)
        else:
            size, offset = _varint(data, offset) if kind == 2 else ({1: 8, 5: 4}[kind], offset)
            value, offset = data[offset : offset + size], offset + size
            if len(value) < size:
                raise IndexError("truncated message")
        yield tag >> 3, value


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return a variable-length integer (seven bits a byte, the lowest first) and the offset after it."""
    value = shift = 0
    while True:
        byte = data[offset]
        value, offset, shift = value | (byte & 127) << shift, offset + 1, shift + 7
        if byte < 128:
            return value, offset


SPACY_MODEL = "en_core_web_sm"
_PUNCTUATION = "?:!.,;"
_MODEL_NAME = re.compile(r"[a-z]{2,3}_[a-z0-9_]+")  # of a package
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*#?|#")
_SIGNS = str.maketrans({"♯": "#", "♭": "b", "’": "'"})


def hash_to_row(word: str, rows: int) -> int:
    """Return the SHA-256 of a word modulo `rows`."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()) % rows


def split_normalized_words(text: str) -> list[str]:
    """Return the words of a text, normalised in case, width and composition, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold())


def lemmatize(text: str) -> str:
    """Return the lemmas of an English text, without stop words and punctuation, with numbers spelled out."""
    return " ".join(spacy_tokens([text])[0])


def spacy_tokens(
    texts: Sequence[str], *, model: str = SPACY_MODEL, lemmas: bool = True, stop_words: bool = False
) -> list[list[str]]:
    """Return the words of each text by a spaCy model, as AudioCraft does: numbers spelled out, without punctuation.

    With `lemmas` words are replaced by their dictionary forms; `stop_words` keeps words such as "the". Raises
    CheckpointError if the model has no lemmatizer, or a package is not installed.
    """
    parse, spell = _load_spacy(model)
    if lemmas and not {"lemmatizer", "trainable_lemmatizer"} & set(parse.pipe_names):
        raise CheckpointError(f"spaCy's model '{model}' has no lemmatizer; set lemmas: false, or choose another model")
    spelled = [re.sub(r"\d{1,30}", lambda number: spell(int(number.group())), text) for text in texts]
    selected = [[word for word in words if stop_words or not word.is_stop] for words in parse.pipe(spelled)]
    return [[word.lemma_ if lemmas else word.text for word in words if word.text not in _PUNCTUATION] for words in selected]


def find_spacy_model(model: str) -> Path:
    """Return the folder of a spaCy model, given as folder or name of an installed package; CheckpointError if not found."""
    folders = [Path(model).expanduser()]
    if not folders[0].is_dir():
        package = importlib.util.find_spec(model) if _MODEL_NAME.fullmatch(model) else None
        locations = [] if package is None else package.submodule_search_locations or []
        folders = [path.parent for location in locations for path in Path(location).glob("*/config.cfg")]
    if not folders or not (folders[0] / "config.cfg").is_file():
        raise CheckpointError(
            f"spaCy's model '{model}' is neither installed nor a folder with its config.cfg: "
            f"python -m spacy download {model if _MODEL_NAME.fullmatch(model) else SPACY_MODEL}, or do without it "
            "(tokenizer: words of `lut`, normalize_text: false of `t5`)"
        )
    return folders[0]


@lru_cache(maxsize=4)
def _load_spacy(model: str) -> tuple[Any, Any]:
    """Return a spaCy model and the function that spells numbers out."""
    try:
        spacy, speech = importlib.import_module("spacy"), importlib.import_module("num2words")
    except ImportError as error:
        raise CheckpointError(
            f"reading texts with spaCy needs {error.name}, which is not installed: "
            'pip install -e ".[text]", or set normalize_text: false (`t5`) or tokenizer: words (`lut`)'
        ) from None
    folder = find_spacy_model(model)
    try:
        return spacy.load(folder), speech.num2words
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} is not a model that this version of spaCy can load ({error}); install it again"
        ) from None
