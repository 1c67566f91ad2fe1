"""Words as they sound: the phonemes of a text in one of many languages, looked up in a table."""

import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, ConditionerSpec, PreparedInputs
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.nn.phonemize import PUNCTUATION, phonemize
from cadenza.nn.rope import sinusoidal_embedding

Vocabulary = Literal["ipa", "g2p_en"]

_LANGUAGE = r"^[a-z]{2,}(-[a-z0-9]+)*$"
_BLOCKS = ((0x250, 0x2FF), (0x300, 0x36F), (0x1D00, 0x1DBF))  # of Unicode: letters of the IPA and their modifiers
_OTHERS = "abcdefghijklmnopqrstuvwxyz0123456789æðøħŋœǀǁǂǃβθχⁿⱱ"  # digits are tones
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_SINGLE = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH".split()
_MARKED = ("<pad>", "<unk>", "<s>", "</s>")  # of g2p_en, before its phonemes in the order of the alphabet
_NOTHING = 1  # the row of what g2p_en leaves as it is: spaces and marks; 0 pads
_ARPABET = (
    {"iː": "IY", "i": "IY", "ɪ": "IH", "ᵻ": "IH", "eɪ": "EY", "e": "EY", "ɛ": "EH", "æ": "AE", "a": "AA", "ɑː": "AA", "ɑ": "AA"}
    | {"ɔː": "AO", "ɔ": "AO", "oʊ": "OW", "oː": "AO", "o": "OW", "ʊ": "UH", "uː": "UW", "u": "UW", "ʌ": "AH", "ə": "AH"}
    | {"ɐ": "AH", "ɜː": "ER", "ɚ": "ER", "aɪ": "AY", "aʊ": "AW", "ɔɪ": "OY", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K"}
    | {"ɡ": "G", "tʃ": "CH", "dʒ": "JH", "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH"}
    | {"h": "HH", "m": "M", "n": "N", "ŋ": "NG", "l": "L", "ɹ": "R", "j": "Y", "w": "W", "ɾ": "T", "ʔ": "T", "x": "K"}
)
_STRESS = {"ˈ": "1", "ˌ": "2"}


class PhonemeSpec(ConditionerSpec):
    """A text in `language`, a name that espeak-ng knows, as at most `max_length` phonemes.

    A value is a text, a mapping with `text` and its own `language`, or one with `phonemes` that are used as they are.
    `vocabulary: g2p_en` has the rows of a table that was trained on the phonemes of that library, for imported models.
    """

    type: Literal["phoneme"] = "phoneme"
    widget: ClassVar[str] = "text"
    language: str = Field(default="en-us", pattern=_LANGUAGE)
    vocabulary: Vocabulary = "ipa"
    max_length: int = Field(default=1024, ge=1)
    positions: bool = True  # whether sinusoids say where a phoneme stands
    project: bool = False  # whether a linear layer follows the table

    @model_validator(mode="after")
    def _english(self) -> Self:
        if self.vocabulary == "g2p_en" and not self.language.startswith("en"):
            raise ValueError(f"vocabulary: g2p_en is English, so language cannot be {self.language}; leave one of them out")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "tokens"

    @classmethod
    def example(cls) -> tuple["PhonemeSpec", list[Any]]:
        """With values that need no program."""
        return cls(output_dim=8, max_length=32), [{"phonemes": said} for said in ("həlˈoʊ wˈɜːld", "hˈaɪ", "bɔ̃ʒˈuʁ, mˈɔ̃d !")]

    def build(self) -> "PhonemeConditioner":
        return PhonemeConditioner(self)


class PhonemeConditioner(Conditioner[Any]):
    """A table with a trained vector a phoneme, and where it stands; what pads is exactly zero."""

    placeholder = ""

    def __init__(self, spec: PhonemeSpec) -> None:
        super().__init__(spec)
        self.table = nn.Embedding(len(symbol_table(spec.vocabulary)), spec.output_dim)
        self.out = nn.Linear(spec.output_dim, spec.output_dim) if spec.project else nn.Identity()

    def prepare(self, values: Sequence[Any]) -> PreparedInputs:
        """A text without a phoneme says as little as none, so it counts as absent."""
        found = self._ids([value for value in values if value is not None])
        ids = [[] if value is None else found.pop(0) for value in values]
        return PreparedInputs(_padded(ids), torch.tensor([bool(row) for row in ids]))

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return _padded(self._ids(values))

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        ids, mask = tensors["ids"], tensors["mask"]
        x = self.out(self.table(ids))
        if self.spec.positions:
            places = torch.arange(ids.shape[1], device=ids.device)[None]
            x = x + sinusoidal_embedding(places, self.spec.output_dim).to(x.dtype)
        return MaskedSequence(x * mask[..., None], mask)

    def _ids(self, values: Sequence[Any]) -> list[list[int]]:
        """The rows of each value's phonemes in the table; the program is run once for each language."""
        read, found = [_read(value, self.spec.language) for value in values], dict[int, str]()
        for language in dict.fromkeys(language for _, language in read if language):
            which = [i for i, (_, its) in enumerate(read) if its == language]
            found |= dict(zip(which, phonemize([str(read[i][0]) for i in which], language), strict=True))
        said = [found.get(i, given) for i, (given, _) in enumerate(read)]
        for value, sounds in zip(values, said, strict=True):
            if not sounds and isinstance(value, str) and value.strip():
                warnings.warn(f"{value!r} has no phonemes: it counts as absent", stacklevel=3)
        most, known = self.spec.max_length, symbol_table(self.spec.vocabulary)
        ids = [_g2p(sounds, known) if self.spec.vocabulary == "g2p_en" else _ipa(sounds, known) for sounds in said]
        if longest := max((len(row) for row in ids if len(row) > most), default=0):
            warnings.warn(
                f"a text has {longest} phonemes, {most} are read (`max_length` of its conditioner): "
                f"the last {longest - most} are lost",
                stacklevel=3,
            )
        return [row[:most] for row in ids]


@cache
def symbol_table(vocabulary: Vocabulary) -> dict[str, int]:
    """The row of every phoneme in the table of a vocabulary.

    `ipa` begins with what it does not know, the space and the marks; then `a` to `z`, the digits, and letters and
    modifiers of the International Phonetic Alphabet, composed ones taken apart.
    """
    if vocabulary == "ipa":
        symbols = ["", " ", *PUNCTUATION, *_OTHERS, *(chr(code) for first, last in _BLOCKS for code in range(first, last + 1))]
        return {symbol: row for row, symbol in enumerate(symbols)}
    sounds = sorted([*_SINGLE, *(f"{vowel}{stress}" for vowel in _VOWELS for stress in "012")])
    return {"": 0, " ": _NOTHING} | {symbol: row for row, symbol in enumerate([*_MARKED, *sounds], _NOTHING + 1)}


def ipa_to_arpabet(sounds: str) -> list[str]:
    """English phonemes of the IPA in the symbols of the CMU dictionary, each vowel with its stress; spaces and marks stay."""
    found, stress, at = [], "0", 0
    while at < len(sounds):
        one = next((sounds[at : at + n] for n in (2, 1) if sounds[at : at + n] in _ARPABET), sounds[at])
        at += len(one)
        if one in _STRESS:
            stress = _STRESS[one]
        elif one in _ARPABET:
            symbol = _ARPABET[one]
            found.append(symbol + stress if symbol in _VOWELS else symbol)
            stress = "0" if symbol in _VOWELS else stress
        elif one == " " or one in PUNCTUATION:
            found.append(one)
    return found


def _read(value: Any, language: str) -> tuple[str | list[str], str]:
    """A text and its language, or phonemes and no language."""
    if isinstance(value, str):
        return value, language
    if isinstance(value, Mapping):
        given, said, its = value.get("phonemes"), value.get("text"), value.get("language", language)
        if value.keys() == {"phonemes"} and isinstance(given, str):
            return given, ""
        if value.keys() == {"phonemes"} and isinstance(given, list | tuple) and all(isinstance(one, str) for one in given):
            return list(given), ""
        if isinstance(said, str) and value.keys() <= {"text", "language"} and re.match(_LANGUAGE, str(its)):
            return said, str(its)
    example = '{"text": "Guten Tag", "language": "de"}, or {"phonemes": "həlˈoʊ"}'
    raise RequestError(f"a text is needed, or {example}, got {value!r}")


def _ipa(sounds: str | list[str], known: dict[str, int]) -> list[int]:
    """The row of each letter and modifier; 0 for those that are unknown."""
    letters = unicodedata.normalize("NFD", re.sub(r"[ \t]+", " ", "".join(sounds)).strip(" "))
    return [known.get(letter, 0) for letter in letters] if any(map(str.isalpha, letters)) else []


def _g2p(sounds: str | list[str], known: dict[str, int]) -> list[int]:
    """The row of each symbol of the CMU dictionary, as they are given or out of the IPA."""
    symbols = ipa_to_arpabet(sounds) if isinstance(sounds, str) else sounds
    if not all(symbol in known or symbol in PUNCTUATION for symbol in symbols):
        wrong = next(symbol for symbol in symbols if symbol not in known and symbol not in PUNCTUATION)
        raise RequestError(f"g2p_en has no phoneme called {wrong!r}.{did_you_mean(wrong, list(known))}")
    ids = [known.get(symbol, _NOTHING) for symbol in symbols]
    return ids if any(row > _NOTHING for row in ids) else []


def _padded(ids: list[list[int]]) -> dict[str, Tensor]:
    """The `ids` of phonemes and the `mask` of those that are real [b n]."""
    lengths = torch.tensor([len(row) for row in ids], dtype=torch.long)
    n = max(1, *map(len, ids)) if ids else 1
    padded = torch.zeros(len(ids), n, dtype=torch.long)
    for row, line in zip(ids, padded, strict=True):
        line[: len(row)] = torch.tensor(row, dtype=torch.long)
    return {"ids": padded, "mask": torch.arange(n) < lengths[:, None]}
