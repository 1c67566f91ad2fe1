"""Code that `cadenza generate "slow piano"` executes, by the script that measures it."""

import re
import subprocess
import sys
from pathlib import Path

import path as script
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "path.py"


@pytest.fixture(scope="module")
def rows() -> dict[str, int]:
    """The rows of the table for the bundled model, in a process of its own."""
    process = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    numbers = {match[1].strip(): int(match[2]) for match in re.finditer(r"^(\D+?) +(\d+)(?:  .*)?$", process.stdout, re.M)}
    assert set(script.TARGETS) < set(numbers), process.stderr
    assert process.returncode == int(any(numbers[name] > limit for name, limit in script.TARGETS.items()))
    return numbers


@pytest.mark.parametrize("name", list(script.TARGETS))
def test_one_generation_does_no_work_twice(rows, name):
    assert rows[name] <= script.TARGETS[name]


def test_the_model_that_was_loaded_generates(rows):
    assert rows["LM steps"] == 53  # 50 frames of 4 codebooks in the delay pattern
