"""Convert texts to phonemes of the International Phonetic Alphabet by the program espeak-ng."""

import re
import shutil
import subprocess
import textwrap
import unicodedata
from collections.abc import Sequence

from cadenza.core.errors import CheckpointError, RequestError

PUNCTUATION = ",.?!;:\n"  # kept between the phonemes of two clauses
_BOUNDARY = re.compile(r"([,.?!;:]+(?=\s|$)|\n)\s*")
_TO_LATIN = str.maketrans(
    {"，": ", ", "．": ". ", "？": "? ", "！": "! ", "；": "; ", "：": ": ", "。": ". ", "、": ", ", "،": ", ", "؟": "? "}
    | {"؛": "; ", "।": ". ", "…": ". ", "—": ", ", "–": ", ", "\u2028": "\n"}
)
_REMOVED = re.compile(r"\([a-z-]+\)|-")  # marks of espeak-ng for words of another language, and for joined words
_MAX_LINE = 200  # characters; the program splits lines above a thousand bytes anywhere
_SEPARATOR = "[[ptptptpt]]"  # input phonemes of a line between two clauses; these stops do not occur in texts


def phonemize(texts: Sequence[str], language: str) -> list[str]:
    """Return the phonemes of each text, with spaces between words and punctuation between clauses.

    The program runs once for all texts; a text without letters and digits gives an empty text. Raises CheckpointError
    if espeak-ng is not installed, RequestError if it does not support the language.
    """
    if not any(map(_has_words, texts)):
        return [""] * len(texts)
    parts = [[part for part in _BOUNDARY.split(_normalize(text)) if part] for text in texts]
    lines = [textwrap.wrap(part, _MAX_LINE, break_on_hyphens=False) for some in parts for part in some if _has_words(part)]
    phonemes = iter(_run_espeak(lines, language))
    whole = ["".join(f"{next(phonemes)} " if _has_words(part) else f"{part[0]} " for part in some) for some in parts]
    return [re.sub(r"[ \t]+", " ", text).strip() if re.search(r"\w", text) else "" for text in whole]


def _run_espeak(clauses: list[list[str]], language: str) -> list[str]:
    """Return the phonemes of each clause, given as lines of text."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise CheckpointError(
            "reading a text as phonemes needs the program espeak-ng, which is not installed: apt-get install espeak-ng "
            '(Debian, Ubuntu), brew install espeak-ng (macOS); or give the value as {"phonemes": ...}'
        )
    lines = "".join("".join(f"{line}\n" for line in [*clause, _SEPARATOR]) for clause in [[], *clauses])
    command = [program, "-q", "--ipa", "-b", "1", "-v", language]
    process = subprocess.run(command, input=lines.encode(), capture_output=True, check=False)
    if process.returncode:
        message = process.stderr.decode(errors="replace").strip()
        raise RequestError(
            f"espeak-ng does not support the language '{language}' ({message}); `espeak-ng --voices` lists the supported ones"
        )
    output = [_REMOVED.sub("", line).strip() for line in process.stdout.decode(errors="replace").splitlines()]
    separator = next((line for line in output if line), "")  # its phonemes in this language
    clause_phonemes, clause = [], []
    for line in output:
        if line == separator:
            clause_phonemes.append(" ".join(clause))
            clause = []
        elif line:
            clause.append(line)
    if len(clause_phonemes) != len(clauses) + 1 or not separator:
        raise RequestError(
            f"espeak-ng gave {len(clause_phonemes) - 1} answers to {len(clauses)} clauses in '{language}'; split the texts"
        )
    return clause_phonemes[1:]


def _normalize(text: str) -> str:
    """Replace commands of the program, control characters and punctuation of other scripts."""
    text = unicodedata.normalize("NFC", text.translate(_TO_LATIN)).replace("[[", "[ ").replace("\r", "\n")
    return "".join(" " if unicodedata.category(letter) == "Cc" and letter != "\n" else letter for letter in text)


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)
