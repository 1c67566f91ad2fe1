"""Runs of the bundled model in fresh processes, against what was foreseen of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan.py"


def fresh(*what: str) -> dict:
    """What a process of its own finds."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--child", *what],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CADENZA_CACHE": "off"},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("cell", [("4", "1", "float32"), ("12", "4", "bfloat16"), ("20", "2", "float32")])
def test_the_peak_is_foreseen(cell):
    """Of the seconds nothing is asked, as other programs may run."""
    foreseen, measured = fresh("foresee", "starter", *cell), fresh("measure", "starter", *cell)
    assert foreseen["bytes"] == pytest.approx(measured["bytes"], rel=0.15)
    assert foreseen["seconds"] > 0
