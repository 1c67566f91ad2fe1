"""Names and prose: plain English and the field's terms (CONTRIBUTING, "Words")."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "cadenza"
FILES = sorted(SRC.glob("**/*.py"))
PACKAGES = sorted({path.relative_to(SRC).parts[0].removesuffix(".py") for path in FILES})
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("configs/**/*.yaml")])
OTHERS = sorted(path for folder in ("tests", "benchmarks", "examples") for path in ROOT.glob(f"{folder}/**/*.py"))

BANNED = {
    r"anew": "again, or another",
    r"mend(s|ed|ing)?": "fix",
    r"nobody": "no user, no worker",
    r"told|heard|said": "the noun: value, audio, text",
    r"hears?|hearing|listens?|listening|obeys?|obeyed": "receives, estimates, follows the condition",
    r"(goes|go|gone|went|going) on (from|with)": "continues",
    r"lets? go|letting go": "unloads, frees",
    r"for ever": "permanently",
    r"in no time": "quickly, cheap to reload",
    r"made up": "random, synthetic",
    r"is no|are no|there is no": "is not a; not found",
    r"doors?|drawers?": "entry point; catch-all name",
    r"house rules?|house tests?": "policy test",
    r"beside": "next to, with",
}
_AUDIO_LEVELS = re.compile(r"there (is|are) no|is no (longer|sound|audio)", re.I)  # plain English after all
OPENINGS = ("What", "Those", "How", "Where", "The same", "Whether it is so")
MAX_WORDS = 20  # of the first sentence of a docstring
QUAINT = {
    "read", "look", "keep", "rest", "told", "since", "over", "beside", "worth", "outside", "within", "kept", "heard", "asked",
    "said", "made", "found", "wanted", "held", "given", "known", "begin", "follow", "narrow", "fit", "fitted", "meant",
}  # fmt: skip
# Public names with one meaning in several modules: methods of a protocol, entry points of importers, pairs of networks.
SHARED_NAMES = {"main", "Encoder", "Decoder", "ResidualUnit"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def package(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), text


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and other texts of a Python file that hold more than one word, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def banned(text: str) -> Iterator[str]:
    for pattern, better in BANNED.items():
        for match in re.finditer(rf"(?<![\w`'\-.])(?:{pattern})(?![\w`'\-])", text, re.I):
            context = text[max(0, match.start() - 15) : match.end() + 15]
            if not _AUDIO_LEVELS.search(context) or "there is no" in pattern and "there is no" in context.lower():
                yield f"'{match[0]}' (write: {better})"


@pytest.mark.parametrize("name", PACKAGES)
def test_prose_uses_no_banned_word(name: str) -> None:
    paths = [path for path in FILES if package(path) == name]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word}" for path in paths for line, text in prose(path) for word in banned(text)
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_no_banned_word(path: Path) -> None:
    lines = re.sub(r"```.*?```|`[^`]*`", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.S).splitlines()
    wrong = [f"{path.relative_to(ROOT)}:{i}: {word}" for i, line in enumerate(lines, 1) for word in banned(line)]
    assert not wrong, "\n".join(wrong)


def test_tests_and_benchmarks_use_no_banned_word() -> None:
    paths = [path for path in OTHERS if path.parent != Path(__file__).parent]  # those contain the words
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word}" for path in paths for line, text in prose(path) for word in banned(text)
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


@pytest.mark.parametrize("name", PACKAGES)
def test_docstrings_open_with_a_verb_or_a_noun(name: str) -> None:
    wrong = []
    for path in [path for path in FILES if package(path) == name]:
        for line, text in docstrings(path):
            first = re.split(r"(?<=[.:;])\s|\n\n", text.replace("\n", " ") if "\n\n" not in text else text.split("\n\n")[0])[0]
            if text.startswith(tuple(f"{opening} " for opening in OPENINGS)):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: opens with '{text.split()[0]}'")
            if len(first.split()) > MAX_WORDS:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: its first sentence has {len(first.split())} words")
    assert not wrong, "\n".join(wrong)


def public_names(path: Path) -> Iterator[tuple[int, str]]:
    """Names of public classes, functions and their public methods."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.lineno, node.name
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield inner.lineno, inner.name


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_verbs_or_nouns(name: str) -> None:
    paths = [path for path in FILES if package(path) == name]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word}" for path in paths for line, word in public_names(path) if word in QUAINT
    ]
    assert not wrong, "\n".join(wrong)


def test_a_public_name_is_defined_in_one_module() -> None:
    homes = defaultdict(set)
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].add(str(path.relative_to(SRC)))
    cli = {name for name, paths in homes.items() if all(path.startswith("apps/") or len(paths) == 1 for path in paths)}
    wrong = {name: sorted(paths) for name, paths in homes.items() if len(paths) > 1 and name not in SHARED_NAMES | cli}
    assert not wrong, "\n".join(f"{name}: {', '.join(paths)}" for name, paths in sorted(wrong.items()))
