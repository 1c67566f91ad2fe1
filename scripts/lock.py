"""Write constraints.txt: one exact version of each package that Cadenza installs, for its development too.

    python scripts/lock.py

The packages are resolved by pip in a dry run, as if none were installed. Only the standard library is used.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
PROJECT = ".[dev,fast]"  # what `make setup` and `make run` install
CUDA_PACKAGES = re.compile(r"nvidia-|cuda-|triton")
HEADER = """\
# The exact version of every package that `make run`, `make setup` and `make test` install.
# Made by `make lock`: pip resolves the extras `dev` and `fast` of pyproject.toml, on Linux with the oldest supported Python.
# torch keeps the version of its line. To change it, edit that line and run `make lock`.
# What only PyTorch's CUDA build requires (NVIDIA's libraries, Triton) is left out; that build names their versions itself.
"""


def read_torch_requirement() -> str:
    """Return the line of the lock that names torch's version."""
    match = re.search(r"^torch==\S+$", LOCK.read_text(), re.M)
    if match is None:
        sys.exit(f"{LOCK.name} has no line torch==VERSION. Add one with the version to use.")
    return match[0]


def check_python() -> None:
    """Exit unless this is the oldest supported Python, for which newer versions of a package may not exist."""
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    current = f"{sys.version_info.major}.{sys.version_info.minor}"
    if current != oldest:
        fix = f"make lock VENV=.venv-lock PYTHON=python{oldest}"
        sys.exit(f"The lock is made with Python {oldest}, and this is Python {current}. Fix: {fix}")


def resolve(requirements: list[str]) -> dict[str, Any]:
    """Return pip's installation report on the newest versions that fulfill the requirements."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        command += ["--dry-run", "--ignore-installed", "--report", str(report), *requirements]
        subprocess.run(command, check=True, cwd=ROOT)
        return json.loads(report.read_text())


def format_lock(report: dict[str, Any]) -> str:
    """Return the text of the lock: the header, then `name==version` of each package but Cadenza itself, sorted by name."""
    versions = {}
    for package in report["install"]:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        if "dir_info" not in package["download_info"] and not CUDA_PACKAGES.match(name):
            versions[name] = package["metadata"]["version"].partition("+")[0]  # 2.13.0+cpu is a build of 2.13.0
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


if __name__ == "__main__":
    check_python()
    LOCK.write_text(format_lock(resolve([PROJECT, read_torch_requirement()])))
