"""Lines and files of each package: growth is a decision, made here."""

from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "cadenza"
MAX_FILES, MAX_LINES, MAX_LINES_OF_A_FILE, MIN_LINES_OF_A_FILE = 190, 26_710, 500, 60
LINES = {
    "__init__": 50, "__main__": 10, "core": 1300, "dsp": 1390, "nn": 4270, "codecs": 920, "conditioners": 3380,
    "generators": 565, "samplers": 355, "system": 1900, "data": 2600, "corpus": 1970, "training": 2070, "evaluation": 2000,
    "importers": 2340, "apps": 1710,
}  # fmt: skip
# Where the redesign meant to arrive, and has not: packages above it may only shrink.
TARGETS = {"core": 1180, "conditioners": 3010, "generators": 530, "samplers": 350, "system": 1800, "data": 2430}
TARGET_LINES = 26_000
# Files under 60 lines: each is a topic of its own that a reader looks up by name.
SMALL_FILES = {
    "core/errors.py", "core/atomic.py", "nn/rope.py", "nn/discriminators.py", "nn/meta_init.py", "nn/kernels/__init__.py",
    "system/codes_io.py", "importers/license.py", "conditioners/int.py", "__main__.py", "__init__.py",
}  # fmt: skip


def lines(path: Path) -> int:
    return path.read_text().count("\n")


def files(package: str) -> list[Path]:
    return sorted((SRC / package).rglob("*.py")) or [SRC / f"{package}.py"]


def test_every_package_has_a_budget() -> None:
    names = {path.relative_to(SRC).parts[0].removesuffix(".py") for path in SRC.rglob("*.py")}
    assert names == set(LINES)


@pytest.mark.parametrize("package", LINES)
def test_a_package_stays_within_its_lines(package: str) -> None:
    count = sum(map(lines, files(package)))
    assert count <= LINES[package], f"{package} has {count} lines of {LINES[package]}; remove some, or decide here on more"


def test_the_whole_stays_within_its_lines_and_files() -> None:
    paths = list(SRC.rglob("*.py"))
    assert sum(map(lines, paths)) <= MAX_LINES
    assert len(paths) <= MAX_FILES


@pytest.mark.xfail(reason="the redesign has not reached its target sizes", strict=True)
def test_the_targets_of_the_redesign_are_met() -> None:
    above = {package: count for package in TARGETS if (count := sum(map(lines, files(package)))) > TARGETS[package]}
    assert not above and sum(map(lines, SRC.rglob("*.py"))) <= TARGET_LINES


def test_files_are_neither_large_nor_tiny() -> None:
    count = {str(path.relative_to(SRC)): lines(path) for path in SRC.rglob("*.py")}
    large = [f"{name} has {n} lines" for name, n in count.items() if n > MAX_LINES_OF_A_FILE]
    verbs = {name for name in count if name.startswith("apps/cli/") or name.endswith("__init__.py")}
    tiny = [f"{name} has {n} lines" for name, n in count.items() if n < MIN_LINES_OF_A_FILE and name not in SMALL_FILES | verbs]
    assert not large + tiny, "\n".join(large + tiny)
