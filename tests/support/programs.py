"""The pytest marker `needs`, for tests that call a program which may not be installed.

`@pytest.mark.needs("espeak-ng")` skips the test if the program is not installed. With CADENZA_REQUIRE_PROGRAMS=1 the
test fails instead. The end of the run lists the programs that were not found, with the command that installs them.
"""

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIRE = "CADENZA_REQUIRE_PROGRAMS"
MISSING = "missing program"  # the key of the user property, by which workers of pytest-xdist report to the main process


@dataclass(frozen=True)
class Program:
    """A program by the name in messages, with the Debian packages that contain it and its data."""

    name: str
    packages: str


PROGRAMS = {
    "fluidsynth": Program("FluidSynth with the sound font FluidR3_GM", "fluidsynth fluid-soundfont-gm"),
    "espeak-ng": Program("espeak-ng", "espeak-ng"),
}


def is_installed(command: str) -> bool:
    """Whether the program is on PATH, and for FluidSynth, whether the sound font is on this machine."""
    return shutil.which(command) is not None and (command != "fluidsynth" or has_sound_font())


def has_sound_font() -> bool:
    """Whether CADENZA_SOUNDFONT names a file, or FluidR3_GM is in a usual folder if the variable is not set."""
    if named := os.environ.get("CADENZA_SOUNDFONT"):
        return Path(named).is_file()
    shares = (Path(prefix, "share") for prefix in ("/usr", "/usr/local", "/opt/homebrew"))
    return any(font.is_file() for share in shares for font in share.glob("sound*/**/FluidR3_GM.sf2"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"needs(program): skip if the program is not installed, or fail with {REQUIRE}=1")


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test, which may call the program
def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = {command: PROGRAMS[command] for mark in item.iter_markers("needs") for command in mark.args}
    missing = [program for command, program in needed.items() if not is_installed(command)]
    if not missing:
        return
    item.user_properties += [(MISSING, program.name) for program in missing]
    message = f"needs {' and '.join(program.name for program in missing)}"
    if os.environ.get(REQUIRE):
        pytest.fail(f"{message}, because {REQUIRE} is set", pytrace=False)
    pytest.skip(message)


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("skipped", "error") for report in terminalreporter.stats.get(outcome, ())]
    tests = [report for report in reports if isinstance(report, pytest.TestReport)]  # not modules that cannot be imported
    counts = Counter(name for report in tests for key, name in report.user_properties if key == MISSING)
    missing = [program for program in PROGRAMS.values() if program.name in counts]
    if missing:
        outcome = "failed" if os.environ.get(REQUIRE) else "skipped"
        programs = ", ".join(f"{program.name} ({outcome} tests: {counts[program.name]})" for program in missing)
        packages = " ".join(program.packages for program in missing)
        terminalreporter.write_line(f"programs not found: {programs}; on Debian: apt-get install {packages}")
