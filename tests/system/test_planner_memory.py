"""Peak memory of the bundled model in fresh processes against the estimate of the planner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan.py"


def run_in_subprocess(*what: str) -> dict:
    """Return what the benchmark prints in a process of its own."""
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
def test_the_estimated_peak_is_the_measured_one(cell):
    estimated, measured = run_in_subprocess("estimate", "starter", *cell), run_in_subprocess("measure", "starter", *cell)
    assert estimated["bytes"] == pytest.approx(measured["bytes"], rel=0.15)
