"""Texts as phonemes of the International Phonetic Alphabet, by the program espeak-ng."""

import re
import shutil
import subprocess
import textwrap
import unicodedata
from collections.abc import Sequence

from cadenza.core.errors import CheckpointError, RequestError

MARKS = ",.?!;:\n"  # which stay between the phonemes of what they part
_MARK = re.compile(r"([,.?!;:]+(?=\s|$)|\n)\s*")
_WRITTEN = {"。": ". ", "、": ", ", "،": ", ", "؟": "? ", "؛": "; ", "।": ". ", "…": ". ", "—": ", ", "–": ", ", "\u2028": "\n"}
_FULL = str.maketrans({"，": ", ", "．": ". ", "？": "? ", "！": "! ", "；": "; ", "：": ": "} | _WRITTEN)
_NO_SOUND = re.compile(r"\([a-z-]+\)|-")  # espeak-ng says where a word is of another language, and where two are joined
_LINE = 200  # characters that the program is given at once; it cuts lines of a thousand bytes anywhere
_BETWEEN = "[[ptptptpt]]"  # phonemes spelled out, in a line between two clauses; no text has that many stops in a row


def phonemize(texts: Sequence[str], language: str) -> list[str]:
    """The phonemes of each text in a language that espeak-ng knows, words apart, with the marks between clauses.

    The program is run once for all texts. A text without anything to say gives an empty text.
    """
    if not any(map(_spoken, texts)):
        return [""] * len(texts)
    parts = [[part for part in _MARK.split(_plain(text)) if part] for text in texts]
    lines = [textwrap.wrap(part, _LINE, break_on_hyphens=False) for some in parts for part in some if _spoken(part)]
    said = iter(_say(lines, language))
    whole = ["".join(f"{next(said)} " if _spoken(part) else f"{part[0]} " for part in some) for some in parts]
    return [re.sub(r"[ \t]+", " ", text).strip() if re.search(r"\w", text) else "" for text in whole]


def _say(clauses: list[list[str]], language: str) -> list[str]:
    """What the program says to each clause, which is lines of text."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise CheckpointError(
            "reading a text as phonemes needs the program espeak-ng, which is not installed: apt-get install espeak-ng "
            '(Debian, Ubuntu), brew install espeak-ng (macOS); or give the value as {"phonemes": ...}'
        )
    asked = "".join("".join(f"{line}\n" for line in [*clause, _BETWEEN]) for clause in [[], *clauses])
    command = [program, "-q", "--ipa", "-b", "1", "-v", language]
    done = subprocess.run(command, input=asked.encode(), capture_output=True, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip()
        raise RequestError(
            f"espeak-ng does not read the language '{language}' ({told}); `espeak-ng --voices` lists those it reads"
        )
    said = [_NO_SOUND.sub("", line).strip() for line in done.stdout.decode(errors="replace").splitlines()]
    between = next((line for line in said if line), "")  # as this language says it
    found, clause = [], []
    for line in said:
        if line == between:
            found.append(" ".join(clause))
            clause = []
        elif line:
            clause.append(line)
    if len(found) != len(clauses) + 1 or not between:
        raise RequestError(
            f"espeak-ng gave {len(found) - 1} answers to {len(clauses)} clauses in '{language}'; split the texts"
        )
    return found[1:]


def _plain(text: str) -> str:
    """A text without what the program would take for a command, its marks those of the Latin script."""
    text = unicodedata.normalize("NFC", text.translate(_FULL)).replace("[[", "[ ").replace("\r", "\n")
    return "".join(" " if unicodedata.category(letter) == "Cc" and letter != "\n" else letter for letter in text)


def _spoken(text: str) -> bool:
    return any(letter.isalnum() for letter in text)
