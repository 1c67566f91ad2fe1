"""The marker `needs`: pytest runs on a small test file, with a PATH on which programs are present or missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.fixture(scope="module")
def sound():
    raise RuntimeError("the program was called")

@pytest.mark.needs("espeak-ng")
@pytest.mark.parametrize("text", ["a", "b", "c"])
def test_speech(text):
    pass

@pytest.mark.needs("fluidsynth")
def test_sound(sound):
    pass

@pytest.mark.parametrize("value", [pytest.param(1, marks=pytest.mark.needs("fluidsynth")), 2])
def test_value(value):
    pass

@pytest.mark.needs("espeak-ng")
@pytest.mark.needs("fluidsynth")
def test_both():
    pass

def test_neither():
    pass
"""
FLUIDSYNTH = "FluidSynth with the sound font FluidR3_GM"


@pytest.fixture
def run_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs the tests above and returns the exit status, the outcomes and the line about programs."""
    (tmp_path / "test_small.py").write_text(TESTS)
    (tmp_path / "font.sf2").write_text("")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("CADENZA_REQUIRE_PROGRAMS", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(*options: str, programs: str = "", font: str = "font.sf2", require: str = "") -> tuple[int, dict[str, int], str]:
        for program in programs.split():
            (tmp_path / "bin" / program).touch(mode=0o755)
        monkeypatch.setenv("CADENZA_SOUNDFONT", str(tmp_path / font))
        monkeypatch.setenv("CADENZA_REQUIRE_PROGRAMS", require)
        command = [sys.executable, "-m", "pytest", "-p", "programs", "-p", "no:cacheprovider", "--strict-markers", *options]
        done = subprocess.run([*command, "test_small.py"], cwd=tmp_path, check=False, capture_output=True, text=True)
        counts = {outcome: int(n) for n, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
        return done.returncode, counts, "\n".join(re.findall(r"^programs not found: (.*)$", done.stdout, re.M))

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "worksteal")], ids=["one process", "xdist"])
def test_tests_of_missing_programs_are_skipped_and_counted(run_pytest, options: tuple[str, ...]) -> None:
    packages = "fluidsynth fluid-soundfont-gm espeak-ng"
    line = f"{FLUIDSYNTH} (skipped tests: 3), espeak-ng (skipped tests: 4); on Debian: apt-get install {packages}"
    assert run_pytest(*options) == (0, {"passed": 2, "skipped": 6}, line)


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "worksteal")], ids=["one process", "xdist"])
def test_tests_of_missing_programs_fail_if_programs_are_required(run_pytest, options: tuple[str, ...]) -> None:
    line = f"{FLUIDSYNTH} (failed tests: 3); on Debian: apt-get install fluidsynth fluid-soundfont-gm"
    assert run_pytest(*options, programs="espeak-ng", require="1") == (1, {"passed": 5, "error": 3}, line)


def test_fluidsynth_needs_a_sound_font(run_pytest) -> None:
    line = f"{FLUIDSYNTH} (skipped tests: 3); on Debian: apt-get install fluidsynth fluid-soundfont-gm"
    assert run_pytest(programs="espeak-ng fluidsynth", font="none.sf2") == (0, {"passed": 5, "skipped": 3}, line)


@pytest.mark.parametrize("require", ["", "1"])
def test_tests_of_installed_programs_run(run_pytest, require: str) -> None:
    """The fixture that raises shows that the test is run."""
    assert run_pytest(programs="espeak-ng fluidsynth", require=require) == (1, {"passed": 7, "error": 1}, "")


def test_modules_that_cannot_be_imported_are_not_counted(run_pytest, tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "test_left_out.py").write_text("import pytest; pytest.skip('not here', allow_module_level=True)")
    line = f"{FLUIDSYNTH} (skipped tests: 3); on Debian: apt-get install fluidsynth fluid-soundfont-gm"
    options = ("--continue-on-collection-errors", "test_broken.py", "test_left_out.py")
    assert run_pytest(*options, programs="espeak-ng") == (1, {"passed": 5, "skipped": 4, "error": 1}, line)


def test_a_run_that_selects_none_of_them_mentions_no_program(run_pytest) -> None:
    assert run_pytest("-k", "neither") == (0, {"passed": 1}, "")
