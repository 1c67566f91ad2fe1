"""Phonemes of a text in one of many languages, embedded by a table."""

import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, ConditionerSpec, pad_ids, warn_truncated
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.nn.phonemize import PUNCTUATION, phonemize
from cadenza.nn.rope import sinusoidal_embedding

Vocabulary = Literal["ipa", "g2p_en"]

_LANGUAGE = r"^[a-z]{2,}(-[a-z0-9]+)*$"
_BLOCKS = ((0x250, 0x2FF), (0x300, 0x36F), (0x1D00, 0x1DBF))  # Unicode blocks of IPA letters and modifiers
_OTHERS = "abcdefghijklmnopqrstuvwxyz0123456789æðøħŋœǀǁǂǃβθχⁿⱱ"  # digits are tones
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_SINGLE = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH".split()
_MARKED = ("<pad>", "<unk>", "<s>", "</s>")  # of g2p_en, before its phonemes in alphabetical order
_SKIPPED = 1  # row of spaces and marks in g2p_en; 0 pads
_ARPABET = (
    {"iː": "IY", "i": "IY", "ɪ": "IH", "ᵻ": "IH", "eɪ": "EY", "e": "EY", "ɛ": "EH", "æ": "AE", "a": "AA", "ɑː": "AA", "ɑ": "AA"}
    | {"ɔː": "AO", "ɔ": "AO", "oʊ": "OW", "oː": "AO", "o": "OW", "ʊ": "UH", "uː": "UW", "u": "UW", "ʌ": "AH", "ə": "AH"}
    | {"ɐ": "AH", "ɜː": "ER", "ɚ": "ER", "aɪ": "AY", "aʊ": "AW", "ɔɪ": "OY", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K"}
    | {"ɡ": "G", "tʃ": "CH", "dʒ": "JH", "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH"}
    | {"h": "HH", "m": "M", "n": "N", "ŋ": "NG", "l": "L", "ɹ": "R", "j": "Y", "w": "W", "ɾ": "T", "ʔ": "T", "x": "K"}
)
_SOUND = re.compile("|".join(sorted(_ARPABET, key=len, reverse=True)) + "|.", re.DOTALL)
_STRESS = {"ˈ": "1", "ˌ": "2"}


class PhonemeSpec(ConditionerSpec):
    """A text in `language`, a name that espeak-ng knows, as at most `max_length` phonemes.

    A value is a text, a mapping with `text` and its own `language`, or one with `phonemes` that are used as they are.
    `vocabulary: g2p_en` has the rows of a table that was trained on the phonemes of that library, for imported models.
    """

    type: Literal["phoneme"] = "phoneme"
    output_kind: ClassVar[ConditionKind] = "tokens"
    language: str = Field(default="en-us", pattern=_LANGUAGE)
    vocabulary: Vocabulary = "ipa"
    max_length: int = Field(default=1024, ge=1)
    positions: bool = True  # add sinusoidal positions
    project: bool = False  # add a linear layer

    @model_validator(mode="after")
    def _english(self) -> Self:
        if self.vocabulary == "g2p_en" and not self.language.startswith("en"):
            raise ValueError(f"vocabulary: g2p_en is English, so language cannot be {self.language}; leave one of them out")
        return self

    @classmethod
    def example(cls) -> tuple["PhonemeSpec", list[Any]]:
        """Return a spec and values of phonemes, which need no espeak-ng."""
        phonemes = ("həlˈoʊ wˈɜːld", "hˈaɪ", "bɔ̃ʒˈuʁ, mˈɔ̃d !")
        return cls(output_dim=8, max_length=32), [{"phonemes": symbols} for symbols in phonemes]

    def build(self) -> "PhonemeConditioner":
        return PhonemeConditioner(self)


class PhonemeConditioner(Conditioner[list[int]]):
    """Embed phonemes, with sinusoidal positions; padding is exactly zero."""

    placeholder = []

    def __init__(self, spec: PhonemeSpec) -> None:
        super().__init__(spec)
        self.table = nn.Embedding(len(symbol_table(spec.vocabulary)), spec.output_dim)
        self.out = nn.Linear(spec.output_dim, spec.output_dim) if spec.project else nn.Identity()

    def parse_values(self, values: Sequence[Any]) -> list[list[int] | None]:
        """Return the table rows of each value's phonemes; a text without phonemes is absent."""
        rows = iter(self._ids([value for value in values if value is not None]))
        return [None if value is None else next(rows) or None for value in values]

    def preprocess(self, values: Sequence[list[int]]) -> dict[str, Tensor]:
        return pad_ids(values)

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        ids, mask = tensors["ids"], tensors["mask"]
        x = self.out(self.table(ids))
        if self.spec.positions:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
            x = x + sinusoidal_embedding(positions, self.spec.output_dim).to(x.dtype)
        return MaskedSequence(x * mask[..., None], mask)

    def _ids(self, values: Sequence[Any]) -> list[list[int]]:
        """Return the table rows of each value's phonemes; espeak-ng runs once per language."""
        parsed = [_parse(value, self.spec.language) for value in values]
        phonemes = [text for text, _ in parsed]
        for language in dict.fromkeys(language for _, language in parsed if language):
            indices = [i for i, (_, its) in enumerate(parsed) if its == language]
            for i, sounds in zip(indices, phonemize([str(phonemes[i]) for i in indices], language), strict=True):
                phonemes[i] = sounds
        for value, sounds in zip(values, phonemes, strict=True):
            if not sounds and isinstance(value, str) and value.strip():
                warnings.warn(f"{value!r} has no phonemes: it counts as absent", stacklevel=3)
        most, known = self.spec.max_length, symbol_table(self.spec.vocabulary)
        ids = [_g2p(sounds, known) if self.spec.vocabulary == "g2p_en" else _ipa(sounds, known) for sounds in phonemes]
        if longest := max((len(row) for row in ids if len(row) > most), default=0):
            warn_truncated(longest, most, "phonemes")
        return [row[:most] for row in ids]


@cache
def symbol_table(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the table row of each symbol of a vocabulary.

    `ipa`: unknown symbols, the space, marks, `a` to `z`, digits, then decomposed IPA letters and modifiers.
    """
    if vocabulary == "ipa":
        symbols = ["", " ", *PUNCTUATION, *_OTHERS, *(chr(code) for first, last in _BLOCKS for code in range(first, last + 1))]
        return {symbol: row for row, symbol in enumerate(symbols)}
    sounds = sorted([*_SINGLE, *(f"{vowel}{stress}" for vowel in _VOWELS for stress in "012")])
    return {"": 0, " ": _SKIPPED} | {symbol: row for row, symbol in enumerate([*_MARKED, *sounds], _SKIPPED + 1)}


def ipa_to_arpabet(sounds: str) -> list[str]:
    """Convert English IPA phonemes to CMU dictionary symbols with vowel stress; spaces and marks are kept."""
    symbols, stress = [], "0"
    for sound in _SOUND.findall(sounds):
        symbol = _ARPABET.get(sound, "")
        if symbol in _VOWELS:
            symbols.append(symbol + stress)
            stress = "0"
        elif symbol or sound == " " or sound in PUNCTUATION:
            symbols.append(symbol or sound)
        stress = _STRESS.get(sound, stress)
    return symbols


def _parse(value: Any, language: str) -> tuple[str | Sequence[str], str]:
    """Return a text and its language, or phonemes and an empty string."""
    if isinstance(value, str):
        return value, language
    if isinstance(value, Mapping):
        phonemes, text, its = value.get("phonemes"), value.get("text"), value.get("language", language)
        if value.keys() == {"phonemes"} and isinstance(phonemes, str | list | tuple):
            if all(isinstance(symbol, str) for symbol in phonemes):
                return phonemes, ""
        if isinstance(text, str) and value.keys() <= {"text", "language"} and re.match(_LANGUAGE, str(its)):
            return text, str(its)
    example = '{"text": "Guten Tag", "language": "de"}, or {"phonemes": "həlˈoʊ"}'
    raise RequestError(f"a text is needed, or {example}, got {value!r}")


def _ipa(sounds: str | Sequence[str], known: dict[str, int]) -> list[int]:
    """Return the row of each letter and modifier; 0 if unknown."""
    letters = unicodedata.normalize("NFD", re.sub(r"[ \t]+", " ", "".join(sounds)).strip(" "))
    return [known.get(letter, 0) for letter in letters] if any(map(str.isalpha, letters)) else []


def _g2p(sounds: str | Sequence[str], known: dict[str, int]) -> list[int]:
    """Return the row of each CMU dictionary symbol; a string is converted from the IPA."""
    symbols = ipa_to_arpabet(sounds) if isinstance(sounds, str) else sounds
    if unknown := [symbol for symbol in symbols if symbol not in known and symbol not in PUNCTUATION]:
        raise RequestError(f"g2p_en has no phoneme called {unknown[0]!r}.{did_you_mean(unknown[0], list(known))}")
    ids = [known.get(symbol, _SKIPPED) for symbol in symbols]
    return ids if any(row > _SKIPPED for row in ids) else []
