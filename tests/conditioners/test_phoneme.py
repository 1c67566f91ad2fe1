"""Words as they sound; where a text is read, these tests call espeak-ng (apt-get install espeak-ng)."""

import unicodedata
import warnings
from typing import Any

import pytest
import torch

from cadenza.conditioners.phoneme import PhonemeConditioner, PhonemeSpec, ipa_to_arpabet, symbol_table
from cadenza.core.errors import RequestError, SpecError
from cadenza.nn.phonemize import phonemize


def part_of(**fields: Any) -> PhonemeConditioner:
    return PhonemeSpec.parse({"type": "phoneme", "output_dim": 4, "null_embedding": "zeros"} | fields).build().eval()


def ids(part: PhonemeConditioner, value: Any) -> list[int]:
    tensors = part.prepare([value]).tensors
    return tensors["ids"][0][tensors["mask"][0]].tolist()


def test_the_vocabulary_is_fixed() -> None:
    """A saved table is worth nothing when its rows move."""
    ipa = symbol_table("ipa")
    assert len(ipa) == len(set(ipa.values())) == max(ipa.values()) + 1 == 540
    assert {symbol: ipa[symbol] for symbol in ("", " ", ",", "\n", "a", "0", "æ", "ɐ", "ˈ", "\u0303", "ᵻ")} == {
        "": 0, " ": 1, ",": 2, "\n": 8, "a": 9, "0": 35, "æ": 45, "ɐ": 60, "ˈ": 180, "\u0303": 239, "ᵻ": 471,
    }  # fmt: skip


@pytest.mark.needs("espeak-ng")
@pytest.mark.parametrize(
    "language", ["en-us", "en-gb", "de", "fr-fr", "es", "it", "ru", "cmn", "ja", "vi", "hi", "fi", "ar", "pt-br"]
)
def test_every_sound_has_a_row(language: str) -> None:
    """Numbers become words of a language."""
    said = " ".join(phonemize([" ".join(map(str, range(0, 101, 7))), "0 1 2 3 1000"], language))
    assert len(said) > 40
    assert not set(unicodedata.normalize("NFD", said)) - symbol_table("ipa").keys()


@pytest.mark.needs("espeak-ng")
def test_texts_in_their_languages_and_phonemes_as_they_are() -> None:
    part = part_of(language="en-us")
    english, french = phonemize(["bonjour"], "en-us")[0], phonemize(["bonjour"], "fr")[0]
    assert english != french
    for value, said in {
        "bonjour": english,
        ("text", "bonjour"): english,
        ("text", "bonjour", "language", "fr"): french,
        ("phonemes", french): french,
    }.items():
        value = dict(zip(value[::2], value[1::2], strict=True)) if isinstance(value, tuple) else value  # noqa: PLW2901
        assert ids(part, value) == [symbol_table("ipa")[letter] for letter in unicodedata.normalize("NFD", said)]
    assert ids(part, {"phonemes": [*french]}) == ids(part, {"phonemes": f"  {french} "}) == ids(part, {"phonemes": french})
    mixed = part.prepare(["bonjour", {"text": "bonjour", "language": "fr"}, None, "bonjour"])
    assert mixed.present.tolist() == [True, True, False, True]
    assert torch.equal(mixed.tensors["ids"][0], mixed.tensors["ids"][3])
    assert mixed.tensors["mask"].sum(1).tolist() == [
        len(ids(part, "bonjour")),
        len(ids(part, {"phonemes": french})),
        0,
        len(ids(part, "bonjour")),
    ]


def test_what_has_no_sound_is_absent() -> None:
    part = part_of()
    with pytest.warns(UserWarning, match="'\\.\\.\\.' has no phonemes: it counts as absent"):
        assert not part.prepare(["..."]).present.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert part.prepare(["", "  ", None, {"phonemes": ""}, {"phonemes": "a"}]).present.tolist() == [False] * 4 + [True]
    made = part(part.encode(part.prepare([None, {"phonemes": "ab"}, {"phonemes": "a"}])))
    assert (
        not made.embeddings[0].any()
        and not made.embeddings[2, 1].any()
        and made.mask.tolist() == [[False] * 2, [True] * 2, [True, False]]
    )


def test_long_texts_are_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="a text has 40 phonemes, 8 are read .*: the last 32 are lost"):
        assert len(ids(part_of(max_length=8), {"phonemes": "ab" * 20})) == 8


def test_order_counts_unless_positions_are_left_out() -> None:
    values = [{"phonemes": "ab"}, {"phonemes": "ba"}]
    for positions in (True, False):
        part = part_of(positions=positions)
        one, other = part(part.encode(part.prepare(values))).embeddings
        assert torch.equal(one.sum(0), other.sum(0)) or positions
        assert torch.allclose(one.flip(0), other) != positions


def test_rows_of_g2p_en() -> None:
    """74 symbols after the pad and what is ignored, as stable-audio-tools counts them."""
    known = symbol_table("g2p_en")
    assert part_of(vocabulary="g2p_en", project=True).table.num_embeddings == 76
    places = {"<pad>": 2, "</s>": 5, "AA0": 6, "AY2": 23, "B": 24, "DH": 27, "UW": 67, "UW0": 68, "ZH": 75}
    assert {symbol: known[symbol] for symbol in places} == places
    part = part_of(vocabulary="g2p_en")
    assert ids(part, {"phonemes": ["HH", "AH0", " ", ",", "L"]}) == [known["HH"], known["AH0"], 1, 1, known["L"]]
    with pytest.raises(RequestError, match="g2p_en has no phoneme called 'HHH'. Did you mean 'HH'"):
        ids(part, {"phonemes": ["HHH"]})
    with pytest.raises(SpecError, match="g2p_en is English, so language cannot be fr"):
        part_of(vocabulary="g2p_en", language="fr")


@pytest.mark.needs("espeak-ng")
@pytest.mark.parametrize(
    ("text", "said"),  # as the CMU Pronouncing Dictionary has them
    [
        ("hello", "HH AH0 L OW1"),
        ("piano", "P IY0 AE1 N OW0"),
        ("drums", "D R AH1 M Z"),
        ("guitar", "G IH0 T AA1 R"),
        ("church", "CH ER1 CH"),
        ("joy", "JH OY1"),
        ("thing", "TH IH1 NG"),
        ("measure", "M EH1 ZH ER0"),
        ("blue house", "B L UW1 | HH AW1 S"),
    ],
)
def test_english_in_the_symbols_of_the_dictionary(text: str, said: str) -> None:
    assert ipa_to_arpabet(phonemize([text], "en-us")[0]) == [" " if symbol == "|" else symbol for symbol in said.split()]


@pytest.mark.parametrize(
    "value", [3, ["a"], {"text": 3}, {"text": "a", "lang": "de"}, {"text": "a", "language": "../x"}, {"phonemes": 3}, {}]
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="a text is needed, or "):
        part_of().prepare([value])
    with pytest.raises(SpecError, match="language"):
        part_of(language="../x")
