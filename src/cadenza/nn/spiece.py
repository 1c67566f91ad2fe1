"""A SentencePiece unigram model (arXiv:1808.06226) as a tokenizer, read without its library."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

_UNIGRAM, _UNKNOWN, _CONTROL = 1, 2, 3  # of a model, of a piece, of a piece
_TEXT, _SCORE, _KIND = 1, 2, 3  # fields of a piece
_WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


def load_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer in a `.model` file, without marks around a text; ValueError where it is no unigram model."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(value)) for field, value in fields if field == 1]
        trainer = dict(_fields(b"".join(value for field, value in fields if field == 2)))
        rules = dict(_fields(b"".join(value for field, value in fields if field == 3)))
        vocabulary = [(piece[_TEXT].decode(), _score(piece)) for piece in pieces]
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path} is no SentencePiece model ({error!r})") from None
    if not vocabulary or trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise ValueError(f"{path} is no unigram model of SentencePiece")
    kinds = [piece.get(_KIND, 1) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=kinds.index(_UNKNOWN) if _UNKNOWN in kinds else None))
    if charsmap := rules.get(2):
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = _WORDS
    tokenizer.add_special_tokens(
        [text for (text, _), kind in zip(vocabulary, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    )
    return tokenizer


def _score(piece: dict[int, Any]) -> float:
    return struct.unpack("<f", piece[_SCORE])[0] if _SCORE in piece else 0.0


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message of protocol buffers: numbers, or the bytes of anything longer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
            if len(value) < size:
                raise IndexError("it ends early")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
