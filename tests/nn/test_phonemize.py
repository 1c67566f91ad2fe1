"""Texts as phonemes: these tests call espeak-ng (apt-get install espeak-ng)."""

import subprocess

import pytest

from cadenza.core.errors import CheckpointError, RequestError
from cadenza.nn.phonemize import phonemize


def alone(text: str, language: str) -> str:
    """Return what the program prints for one clause."""
    done = subprocess.run(["espeak-ng", "-q", "--ipa", "-v", language, text], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.replace("-", "").split())


@pytest.mark.needs("espeak-ng")
@pytest.mark.parametrize(
    ("language", "texts"),
    [
        ("en-us", ["hello world", "eighty beats", "a minor"]),
        ("de", ["guten Tag", "schöne Musik"]),
        ("fr", ["bonjour le monde", "très vite"]),
        ("ru", ["привет мир"]),
        ("fi", ["hyvää päivää"]),
    ],
)
def test_a_batch_of_texts_equals_each_text_alone(language: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(text, language) for text in texts]
    calls, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *said, **how: calls.append(said) or run(*said, **how))
    assert phonemize(["", *texts, "...", texts[0]], language) == ["", *expected, "", expected[0]]
    assert len(calls) == 1
    assert phonemize(["", " \n ", "?!"], language) == ["", "", ""] and len(calls) == 1


@pytest.mark.needs("espeak-ng")
def test_punctuation_is_kept_at_the_end_of_clauses() -> None:
    hello, friend, pi = (alone(text, "en-us") for text in ("hello", "friend", "3.14"))
    assert phonemize(["hello, friend!", "hello\nfriend", "3.14; hello...", "hello？friend。"], "en-us") == [
        f"{hello} , {friend} !",
        f"{hello} \n {friend}",
        f"{pi} ; {hello} .",
        f"{hello} ? {friend} .",
    ]


@pytest.mark.needs("espeak-ng")
def test_commands_in_texts_are_not_executed() -> None:
    """Check phoneme markup, options and the separator of clauses."""
    one, other = phonemize(["[[ptptptpt]]", "-v de hello"], "en-us")
    assert one and "ptptptpt" not in one.replace(" ", "")
    assert other.endswith(alone("hello", "en-us"))
    assert phonemize(["hel\x00lo\x07"], "en-us") == [alone("hel lo", "en-us")]


@pytest.mark.needs("espeak-ng")
def test_long_texts_are_not_cut() -> None:
    """The program splits lines above a thousand bytes anywhere, so it gets shorter ones."""
    words = phonemize(["piano " * 700, "пиано " * 300, "a" * 1500], "en-us")
    assert words[0].split() == alone("piano", "en-us").split() * 700
    assert len(words[1].split()) >= 300 and words[2]


@pytest.mark.needs("espeak-ng")
def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(RequestError, match="espeak-ng does not support the language 'tlh-q'"):
        phonemize(["hello"], "tlh-q")


def test_a_missing_program_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CheckpointError, match="needs the program espeak-ng, which is not installed: apt-get install espeak-ng"):
        phonemize(["hello"], "en-us")
    assert phonemize([""], "en-us") == [""]
