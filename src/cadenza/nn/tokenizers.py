"""Byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over the bytes of words.

Piece i is the byte i below 256, and above it the join of the two pieces in row i - 256 of `merges`.
"""

import hashlib
import importlib
import importlib.util
import re
import struct
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cadenza.core.errors import CheckpointError

BYTES = 256
_KEPT = 1 << 16  # words whose pieces are remembered

Merges = list[tuple[int, int]]


class BPETokenizer:
    """Words to the ids of their pieces, by the merges learnt first."""

    def __init__(self, merges: Sequence[tuple[int, int]] = ()) -> None:
        self._id = {pair: BYTES + i for i, pair in enumerate(merges)}
        self._known: dict[str, list[int]] = {}

    def encode_word(self, word: str) -> list[int]:
        """The ids of a word's pieces; every word has some."""
        if word in self._known:
            return self._known[word]
        ids = list(word.encode("utf-8", "replace"))
        while len(ids) > 1:
            first = min(pairwise(ids), key=lambda pair: self._id.get(pair, float("inf")))
            if first not in self._id:
                break
            ids = _join(ids, first, self._id[first])
        if len(self._known) < _KEPT:
            self._known[word] = ids
        return ids


def train_bpe(counts: Mapping[str, int], pieces: int) -> Merges:
    """At most `pieces` merges, the most frequent pair first; of equals the one with the lowest ids."""
    words = [(list(word.encode("utf-8", "replace")), count) for word, count in sorted(counts.items())]
    frequency: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for place, (ids, count) in enumerate(words):
        for pair in pairwise(ids):
            frequency[pair] += count
            places[pair].add(place)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapify(heap)
    merges: Merges = []
    while heap and len(merges) < pieces:
        count, best = heappop(heap)
        if -count != frequency[best]:  # an entry of before a merge; its successor is in the heap too
            continue
        if -count < 2:  # a pair seen once is no regularity
            break
        changed: set[tuple[int, int]] = set()
        for place in places.pop(best):
            old, count = words[place]
            new = _join(old, best, BYTES + len(merges))
            for pair in pairwise(old):
                frequency[pair] -= count
            for pair in pairwise(new):
                frequency[pair] += count
                places[pair].add(place)
            changed.update(pairwise(old), pairwise(new))
            words[place] = (new, count)
        for pair in changed:
            heappush(heap, (-frequency[pair], pair))
        merges.append(best)
    return merges


def _join(ids: Sequence[int], pair: tuple[int, int], joined: int) -> list[int]:
    out: list[int] = []
    for piece in ids:
        if out and (out[-1], piece) == pair:
            out[-1] = joined
        else:
            out.append(piece)
    return out


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


MODEL = "en_core_web_sm"
_MARKS = "?:!.,;"
_NAME = re.compile(r"[a-z]{2,3}_[a-z0-9_]+")  # of a package with a language model
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*#?|#")
_SIGNS = str.maketrans({"♯": "#", "♭": "b", "’": "'"})


def hash_to_row(word: str, rows: int) -> int:
    """Which of `rows` rows a word has: its SHA-256 as a number, modulo `rows`; two words may share one."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()) % rows


def split_normalized_words(text: str) -> list[str]:
    """Runs of letters and digits, whatever their case, width and composition; marks between them are left out."""
    return _WORD.findall(unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold())


def lemmatize(text: str) -> str:
    """The lemmas of an English text without its stop words and marks, numbers spelled out."""
    return " ".join(spacy_tokens([text])[0])


def spacy_tokens(texts: Sequence[str], *, model: str = MODEL, lemmas: bool = True, stop_words: bool = False) -> list[list[str]]:
    """The words of each text by a language model, as AudioCraft reads them: numbers spelled out, marks left out.

    `lemmas` are the words' dictionary forms; `stop_words`, such as "the", are kept only where asked for.
    """
    parse, spell = _tools(model)
    if lemmas and not {"lemmatizer", "trainable_lemmatizer"} & set(parse.pipe_names):
        raise CheckpointError(f"spaCy's model '{model}' has no lemmatizer; set lemmas: false, or choose another model")
    spoken = [re.sub(r"\d{1,30}", lambda number: spell(int(number.group())), text) for text in texts]
    said = [[word for word in words if stop_words or not word.is_stop] for words in parse.pipe(spoken)]
    return [[word.lemma_ if lemmas else word.text for word in words if word.text not in _MARKS] for words in said]


def find_spacy_model(model: str) -> Path:
    """The folder of one of spaCy's language models, given that folder or the name of an installed package."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        found = [folder]
    else:
        package = importlib.util.find_spec(model) if _NAME.fullmatch(model) else None
        places = [] if package is None else package.submodule_search_locations or []
        found = [path.parent for place in places for path in Path(place).glob("*/config.cfg")]
    if not found or not (found[0] / "config.cfg").is_file():
        raise CheckpointError(
            f"spaCy's model '{model}' is neither installed nor a folder with its config.cfg: "
            f"python -m spacy download {model if _NAME.fullmatch(model) else MODEL}, or do without it "
            "(tokenizer: words of `lut`, normalize_text: false of `t5`)"
        )
    return found[0]


@lru_cache(maxsize=4)
def _tools(model: str) -> tuple[Any, Any]:
    """The parser of a language model and the function that spells numbers out."""
    try:
        spacy, speech = importlib.import_module("spacy"), importlib.import_module("num2words")
    except ImportError as error:
        raise CheckpointError(
            f"reading texts with spaCy needs {error.name}, which is not installed: "
            'pip install "cadenza[text]", or set normalize_text: false (`t5`) or tokenizer: words (`lut`)'
        ) from None
    folder = find_spacy_model(model)
    try:
        return spacy.load(folder), speech.num2words
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is no language model that this spaCy can read ({error}); install it anew") from None
